//! Clients that call continuously, in the background of a test.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cedar_pdp::api::grpc::pb;
use cedar_pdp::api::grpc::pb::authorization_service_client::AuthorizationServiceClient;
use tonic::transport::Channel;

use crate::client::Said;
use crate::server::Server;

/// Tasks that repeat calls until stopped, and count them.
#[derive(Default)]
pub struct Busy {
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<u64>>,
}

impl Busy {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a task that repeats `call`.
    pub fn with<F>(mut self, mut call: impl FnMut() -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send,
    {
        let stop = Arc::clone(&self.stop);
        self.tasks.push(tokio::spawn(async move {
            let mut calls = 0;
            while !stop.load(Ordering::Relaxed) {
                call().await;
                calls += 1;
            }
            calls
        }));
        self
    }

    /// Stops the tasks. Panics if a task failed or made no call.
    pub async fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            assert!(task.await.expect("no call fails") > 0);
        }
    }
}

/// Clients that repeat one request, by each kind of call, each on its own connection.
pub struct Askers {
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<BTreeMap<Said, u64>>>,
}

impl Askers {
    /// Starts a unary, a batch and a stream client, and waits for the first answer to each. `pause`
    /// is the time between calls, which leaves CPU to others.
    pub async fn start(server: &Server, request: &pb::AuthorizeRequest, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = Vec::new();
        for way in [Way::OneByOne, Way::InBatches, Way::OnAStream] {
            let mut asker = Asker::connect(server, way, request.clone()).await;
            let mut said = BTreeMap::new();
            asker.ask(&mut said).await;
            let stop = Arc::clone(&stop);
            tasks.push(tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    asker.ask(&mut said).await;
                    if !pause.is_zero() {
                        tokio::time::sleep(pause).await;
                    }
                }
                said
            }));
        }
        Self { stop, tasks }
    }

    /// Stops the clients. Returns all distinct answers with their counts. Panics if a call failed.
    pub async fn finish(self) -> BTreeMap<Said, u64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = BTreeMap::new();
        for task in self.tasks {
            for (said, count) in task.await.expect("no call fails") {
                *all.entry(said).or_default() += count;
            }
        }
        all
    }
}

enum Way {
    OneByOne,
    InBatches,
    OnAStream,
}

enum Asker {
    OneByOne(AuthorizationServiceClient<Channel>, pb::AuthorizeRequest),
    InBatches(AuthorizationServiceClient<Channel>, pb::AuthorizeRequest),
    OnAStream {
        items: tokio::sync::mpsc::Sender<pb::StreamAuthorizeRequest>,
        answers: tonic::Streaming<pb::StreamAuthorizeResponse>,
        next: u64,
        request: pb::AuthorizeRequest,
    },
}

impl Asker {
    async fn connect(server: &Server, way: Way, request: pb::AuthorizeRequest) -> Self {
        let mut client = server.authorization().await;
        match way {
            Way::OneByOne => Self::OneByOne(client, request),
            Way::InBatches => Self::InBatches(client, request),
            Way::OnAStream => {
                let (items, sent) = tokio::sync::mpsc::channel(1);
                let sent = tokio_stream::wrappers::ReceiverStream::new(sent);
                let answers = client.stream_authorize(sent).await.unwrap().into_inner();
                Self::OnAStream {
                    items,
                    answers,
                    next: 0,
                    request,
                }
            }
        }
    }

    async fn ask(&mut self, said: &mut BTreeMap<Said, u64>) {
        let mut note = |response: pb::AuthorizeResponse| {
            *said.entry(response.into()).or_default() += 1;
        };
        match self {
            Self::OneByOne(client, request) => {
                note(
                    client
                        .authorize(request.clone())
                        .await
                        .unwrap()
                        .into_inner(),
                );
            }
            Self::InBatches(client, request) => {
                let requests = vec![request.clone(); 3];
                let batch = pb::BatchAuthorizeRequest { requests };
                let answered = client.batch_authorize(batch).await.unwrap().into_inner();
                assert_eq!(answered.results.len(), 3);
                for result in answered.results {
                    match result.result {
                        Some(pb::batch_authorize_result::Result::Response(response)) => {
                            assert_eq!(response.revision, answered.revision);
                            note(response);
                        }
                        other => panic!("{other:?}"),
                    }
                }
            }
            Self::OnAStream {
                items,
                answers,
                next,
                request,
            } => {
                *next += 1;
                let item = pb::StreamAuthorizeRequest {
                    correlation_id: *next,
                    request: Some(request.clone()),
                };
                items.send(item).await.unwrap();
                let answer = answers
                    .message()
                    .await
                    .unwrap()
                    .expect("the stream goes on");
                assert_eq!(answer.correlation_id, *next);
                match answer.result {
                    Some(pb::stream_authorize_response::Result::Response(response)) => {
                        note(response)
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}
