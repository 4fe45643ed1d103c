//! Tools that take their time: each is a real job, waited for with drydock's own `wait_for_job`, so a client that
//! understands tasks gets a real job as its task.

use std::time::Duration;

use drydock::gateway::mcp::Server;
use drydock::store::{Holder, Lease, Store};
use drydock_spec::{Failure, FailureKind, FinetuneArgs, JobArgs, JobState, Outcome};
use rmcp::ServerHandler;
use rmcp::model::{CallToolRequestParams, CallToolResponse, ClientCapabilities, ErrorData, JsonObject};
use rmcp::service::{RequestContext, RoleServer};
use serde_json::json;

use crate::house;

/// A job that somebody moves by hand.
pub(crate) struct Staged {
    model: String,
    time: Duration,
    outcome: Outcome,
}

impl Staged {
    /// The job of a tool, or `None` if the tool starts none.
    pub(crate) fn by(request: &CallToolRequestParams) -> Option<Self> {
        let seconds = request.arguments.as_ref().and_then(|arguments| arguments.get("seconds")?.as_f64());
        let second = Duration::from_secs(1);
        let (time, outcome) = match request.name.as_ref() {
            "slow_compute" => (seconds.map_or(second, Duration::from_secs_f64), Outcome::Succeeded),
            "failing_job" => (second, Outcome::Failed(Failure::new(FailureKind::Diverged, "the loss is not a number"))),
            _ => return None,
        };
        Some(Self { model: "tiny".into(), time, outcome })
    }

    /// A job on a model whose name a client has just told.
    pub(crate) fn on(model: &str) -> Self {
        Self { model: model.to_owned(), time: Duration::from_secs(1), outcome: Outcome::Succeeded }
    }

    /// Starts the job, and waits for it as any client does.
    pub(crate) async fn wait_for(
        self,
        server: &Server,
        store: &Store,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let args = FinetuneArgs { model: self.model, dataset: "squad".into(), ..FinetuneArgs::default() };
        let spec = JobArgs::Finetune(args).parse().unwrap();
        let id = house::queue(store, |new| new.spec = spec).await.id;
        let holder = Holder { name: "conformance".into(), lease_ms: 60_000 };
        let lease = store.claim(id, &holder).await.unwrap().unwrap();
        let running = tokio::spawn(carry_out(store.clone(), lease, self.time, self.outcome));
        if self.time.is_zero() {
            running.await.unwrap();
        }
        let arguments = JsonObject::from_iter([("id".to_owned(), json!(id))]);
        let wait = CallToolRequestParams::new("wait_for_job").with_arguments(arguments);
        server.call_tool(wait, context).await
    }
}

/// What a worker would do: take its time, and leave when it is asked to.
async fn carry_out(store: Store, lease: Lease, time: Duration, outcome: Outcome) {
    let id = lease.job().id;
    let mut news = store.changes().subscribe(id);
    let cancelled = async {
        while !matches!(store.job(id).await.unwrap().state, JobState::Stopping { .. }) {
            news.changed().await;
        }
    };
    let outcome = tokio::select! {
        () = tokio::time::sleep(time) => outcome,
        () = cancelled => Outcome::Cancelled,
    };
    lease.finish(outcome, &[], 0).await.unwrap();
}

/// For a tool that gives no answer but a task.
pub(crate) fn insist_on_tasks(context: &RequestContext<RoleServer>) -> Result<(), ErrorData> {
    if context.client_capabilities().is_some_and(|declared| declared.supports_tasks()) {
        return Ok(());
    }
    Err(ErrorData::missing_required_client_capability(ClientCapabilities::builder().enable_tasks().build()))
}
