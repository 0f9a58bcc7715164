//! Clients that call continuously, in the background of a test.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cedar_pdp::api::grpc::pb;
use cedar_pdp::api::grpc::pb::authorization_service_client::AuthorizationServiceClient;
use tonic::transport::Channel;

use crate::client::Answer;
use crate::server::Server;

/// Tasks that repeat calls until stopped, and count them.
#[derive(Default)]
pub struct BackgroundCalls {
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<u64>>,
}

impl BackgroundCalls {
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
pub struct BackgroundClients {
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<BTreeMap<Answer, u64>>>,
}

impl BackgroundClients {
    /// Starts a unary, a batch and a stream client, and waits for the first answer to each. `pause`
    /// is the time between calls, which leaves CPU to others.
    pub async fn start(server: &Server, request: &pb::AuthorizeRequest, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = Vec::new();
        for kind in [CallKind::Unary, CallKind::Batch, CallKind::Stream] {
            let mut client = Client::connect(server, kind, request.clone()).await;
            let mut counts = BTreeMap::new();
            client.call_once(&mut counts).await;
            let stop = Arc::clone(&stop);
            tasks.push(tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    client.call_once(&mut counts).await;
                    if !pause.is_zero() {
                        tokio::time::sleep(pause).await;
                    }
                }
                counts
            }));
        }
        Self { stop, tasks }
    }

    /// Stops the clients. Returns all distinct answers with their counts. Panics if a call failed.
    pub async fn finish(self) -> BTreeMap<Answer, u64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = BTreeMap::new();
        for task in self.tasks {
            for (counts, count) in task.await.expect("no call fails") {
                *all.entry(counts).or_default() += count;
            }
        }
        all
    }
}

enum CallKind {
    Unary,
    Batch,
    Stream,
}

enum Client {
    Unary(AuthorizationServiceClient<Channel>, pb::AuthorizeRequest),
    Batch(AuthorizationServiceClient<Channel>, pb::AuthorizeRequest),
    Stream {
        items: tokio::sync::mpsc::Sender<pb::StreamAuthorizeRequest>,
        answers: tonic::Streaming<pb::StreamAuthorizeResponse>,
        next: u64,
        request: pb::AuthorizeRequest,
    },
}

impl Client {
    async fn connect(server: &Server, kind: CallKind, request: pb::AuthorizeRequest) -> Self {
        let mut client = server.authorization().await;
        match kind {
            CallKind::Unary => Self::Unary(client, request),
            CallKind::Batch => Self::Batch(client, request),
            CallKind::Stream => {
                let (items, sent) = tokio::sync::mpsc::channel(1);
                let sent = tokio_stream::wrappers::ReceiverStream::new(sent);
                let answers = client.stream_authorize(sent).await.unwrap().into_inner();
                Self::Stream {
                    items,
                    answers,
                    next: 0,
                    request,
                }
            }
        }
    }

    async fn call_once(&mut self, counts: &mut BTreeMap<Answer, u64>) {
        let mut count_answer = |response: pb::AuthorizeResponse| {
            *counts.entry(response.into()).or_default() += 1;
        };
        match self {
            Self::Unary(client, request) => {
                count_answer(
                    client
                        .authorize(request.clone())
                        .await
                        .unwrap()
                        .into_inner(),
                );
            }
            Self::Batch(client, request) => {
                let requests = vec![request.clone(); 3];
                let batch = pb::BatchAuthorizeRequest { requests };
                let answered = client.batch_authorize(batch).await.unwrap().into_inner();
                assert_eq!(answered.results.len(), 3);
                for result in answered.results {
                    match result.result {
                        Some(pb::batch_authorize_result::Result::Response(response)) => {
                            assert_eq!(response.revision, answered.revision);
                            count_answer(response);
                        }
                        other => panic!("{other:?}"),
                    }
                }
            }
            Self::Stream {
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
                    .expect("the stream stays open");
                assert_eq!(answer.correlation_id, *next);
                match answer.result {
                    Some(pb::stream_authorize_response::Result::Response(response)) => {
                        count_answer(response)
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}
