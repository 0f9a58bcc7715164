//! A server under attack, and checks that it is unharmed.

use cedar_pdp::api::grpc::pb;
use prost::Message as _;
use tempfile::TempDir;
use tonic::{Code, Status};

use super::requests::good;
use crate::support::http2::{AUTHORIZE, BATCH, Http2Client, Outcome, STREAM, violated_fields};
use crate::support::protobuf::framed;
use crate::support::{Server, item_status, policy_directory};

pub(crate) struct Target {
    pub(crate) server: Server,
    /// The connection of the cases.
    pub(crate) client: Http2Client,
    _policies: TempDir,
}

impl Target {
    pub(crate) async fn open(files: &[(&str, &str)], arguments: &[&str]) -> Self {
        Self::open_in(&[], files, arguments).await
    }

    /// Starts a server with these environment variables.
    pub(crate) async fn open_in(
        environment: &[(&str, &str)],
        files: &[(&str, &str)],
        arguments: &[&str],
    ) -> Self {
        let policies = policy_directory(files);
        let mut command = crate::support::serve_command(policies.path(), arguments);
        command.envs(environment.iter().copied());
        let server = Server::spawn(command, 1);
        let client = Http2Client::connect(server.address()).await;
        Self {
            server,
            client,
            _policies: policies,
        }
    }

    /// Opens another connection.
    pub(crate) async fn connect(&self) -> Http2Client {
        Http2Client::connect(self.server.address()).await
    }

    /// Asserts that the process lives, and answers the next valid call on the same connection.
    pub(crate) async fn assert_alive(&mut self, after: &str) {
        assert!(
            self.server.is_alive(),
            "{after} ended the process:\n{}",
            self.server.log()
        );
        allowed(&self.client, after).await;
    }

    /// Asserts that the process lives, and answers the next valid call on a new connection.
    pub(crate) async fn assert_accepting(&mut self, after: &str) {
        assert!(
            self.server.is_alive(),
            "{after} ended the process:\n{}",
            self.server.log()
        );
        allowed(&self.connect().await, after).await;
    }

    /// Asserts that `request` is rejected with this code and field, alone and as an item of a batch
    /// and a stream. The items around it must be answered.
    pub(crate) async fn assert_rejected(
        &mut self,
        case: &str,
        code: Code,
        field: &str,
        request: &pb::AuthorizeRequest,
    ) {
        let fields = |status: &Status| (status.code(), violated_fields(status));
        let named: Vec<String> = if field.is_empty() {
            vec![]
        } else {
            vec![field.to_owned()]
        };
        let expected = (code, named);

        let unary = self.client.call(AUTHORIZE, &request.encode_to_vec()).await;
        unary.code();
        assert_eq!(
            fields(unary.status.as_ref().unwrap()),
            expected,
            "{case}: {unary:?}"
        );
        assert!(unary.messages.is_empty(), "{case}: {unary:?}");

        let batch = pb::BatchAuthorizeRequest {
            requests: vec![good(), request.clone(), good()],
        };
        let batch: pb::BatchAuthorizeResponse = self
            .client
            .call(BATCH, &batch.encode_to_vec())
            .await
            .message();
        let results: Vec<_> = batch
            .results
            .into_iter()
            .map(|result| result.result.unwrap())
            .collect();
        use pb::batch_authorize_result::Result::{Error, Response};
        match results.as_slice() {
            [Response(_), Error(error), Response(_)] => {
                assert_eq!(
                    fields(&item_status(error)),
                    expected,
                    "{case}, in a batch: {error:?}"
                );
            }
            other => panic!("{case}, in a batch: {other:?}"),
        }

        let mut items = Vec::new();
        for (correlation_id, request) in [(1, good()), (2, request.clone()), (3, good())] {
            let item = pb::StreamAuthorizeRequest {
                correlation_id,
                request: Some(request),
            };
            items.extend(framed(&item.encode_to_vec()));
        }
        let stream = self
            .client
            .send(crate::support::http2::post(STREAM).body(()).unwrap(), items)
            .await;
        assert_eq!(stream.code(), Code::Ok, "{case}, in a stream: {stream:?}");
        let mut answers = stream.messages::<pb::StreamAuthorizeResponse>();
        answers.sort_by_key(|answer| answer.correlation_id);
        assert_eq!(answers.len(), 3, "{case}, in a stream");
        match answers[1].result.as_ref().unwrap() {
            pb::stream_authorize_response::Result::Error(error) => {
                assert_eq!(
                    fields(&item_status(error)),
                    expected,
                    "{case}, in a stream: {error:?}"
                );
            }
            other @ pb::stream_authorize_response::Result::Response(_) => {
                panic!("{case}, in a stream: {other:?}")
            }
        }
        self.assert_alive(case).await;
    }

    /// Asserts that `request` is answered, by either decision.
    pub(crate) async fn assert_answered(
        &mut self,
        case: &str,
        request: &pb::AuthorizeRequest,
    ) -> pb::AuthorizeResponse {
        let outcome = self.client.call(AUTHORIZE, &request.encode_to_vec()).await;
        assert_eq!(outcome.code(), Code::Ok, "{case}: {:?}", outcome.status);
        let answer: pb::AuthorizeResponse = outcome.message();
        assert_ne!(answer.decision(), pb::Decision::Unspecified, "{case}");
        self.assert_alive(case).await;
        answer
    }

    /// Asserts that these bytes, sent to each method, end the call with this code and no field.
    pub(crate) async fn assert_rejected_bytes(&mut self, case: &str, code: Code, request: &[u8]) {
        let item = crate::support::protobuf::field(2, request);
        let batch = crate::support::protobuf::field(1, request);
        for (path, message) in [(AUTHORIZE, request), (BATCH, &batch), (STREAM, &item)] {
            let outcome = self.client.call(path, message).await;
            assert_eq!(outcome.code(), code, "{case}, {path}: {outcome:?}");
            assert_eq!(
                violated_fields(outcome.status.as_ref().unwrap()),
                Vec::<String>::new(),
                "{case}, {path}"
            );
            assert!(outcome.messages.is_empty(), "{case}, {path}");
            self.assert_alive(case).await;
        }
    }

    /// Asserts that nothing panicked, and stops the server.
    pub(crate) async fn close(mut self) {
        self.assert_accepting("everything").await;
        let log = self.server.log();
        assert!(!log.contains("panicked"), "something panicked:\n{log}");
    }
}

/// Asserts that the valid call is allowed.
pub(crate) async fn allowed(client: &Http2Client, after: &str) {
    let outcome: Outcome = client.call(AUTHORIZE, &good().encode_to_vec()).await;
    assert_eq!(outcome.code(), Code::Ok, "after {after}: {outcome:?}");
    let answer: pb::AuthorizeResponse = outcome.message();
    assert_eq!(answer.decision(), pb::Decision::Allow, "after {after}");
}
