//! Jobs as MCP tasks (SEP-2663), for clients that declare the extension. A task is only another name for a job: its id
//! is the job's, its state is read from the job table, and so it outlives every connection and restart.

use std::time::{Duration, UNIX_EPOCH};

use rmcp::model::{
    CreateTaskResult, DetailedTask, ErrorData, GetTaskResult, ProtocolVersion, Task, TaskPayload, TaskStatus,
};
use rmcp::service::{RequestContext, RoleServer};
use serde_json::Value;

use super::Gateway;
use super::body::job_id;
use super::calls;
use super::error::Refusal;
use crate::api::JobView;

/// How often a client should ask, in milliseconds.
const POLL_MS: u64 = 2000;

/// Whether the caller understands tasks. Older revisions had tasks of another shape, so the revision counts, too.
pub(super) fn understood(context: &RequestContext<RoleServer>) -> bool {
    let modern = context.protocol_version().is_some_and(|version| version >= ProtocolVersion::V_2026_07_28);
    modern && context.client_capabilities().is_some_and(|capabilities| capabilities.supports_tasks())
}

/// The handle of a job that goes on.
pub(super) async fn handle(gateway: &Gateway, job: &JobView) -> Result<CreateTaskResult, Refusal> {
    Ok(CreateTaskResult::new(task(gateway, job).await?))
}

pub(super) async fn get(gateway: &Gateway, id: &str) -> Result<GetTaskResult, ErrorData> {
    let job = found(gateway, id).await?;
    let task = task(gateway, &job).await.map_err(protocol_error)?;
    let payload = match job.state.as_str() {
        "cancelled" => TaskPayload::Cancelled,
        _ if job.is_done() => TaskPayload::Completed { result: result(job).map_err(protocol_error)? },
        _ => TaskPayload::Working,
    };
    Ok(GetTaskResult::new(DetailedTask::new(task, payload)))
}

/// Nothing is ever asked of a client in the middle of a job, so there is nothing to update.
pub(super) async fn update(gateway: &Gateway, id: &str) -> Result<(), ErrorData> {
    found(gateway, id).await.map(|_| ())
}

pub(super) async fn cancel(gateway: &Gateway, id: &str) -> Result<(), ErrorData> {
    let job = found(gateway, id).await?;
    let desk = gateway.desk.clone();
    let cancelled = gateway.undisturbed(async move { desk.cancel(job.id).await }).await;
    cancelled.map(|_| ()).map_err(|error| protocol_error(error.into()))
}

async fn found(gateway: &Gateway, id: &str) -> Result<JobView, ErrorData> {
    let id = job_id(id).map_err(protocol_error)?;
    gateway.desk.job(id).await.map_err(|error| protocol_error(error.into()))
}

/// What `wait_for_job` would have answered.
fn result(job: JobView) -> Result<serde_json::Map<String, Value>, Refusal> {
    match serde_json::to_value(calls::job(job)?) {
        Ok(Value::Object(result)) => Ok(result),
        Ok(_) => Ok(serde_json::Map::new()),
        Err(error) => Err(Refusal::internal(&error)),
    }
}

async fn task(gateway: &Gateway, job: &JobView) -> Result<Task, Refusal> {
    let newest = gateway.desk.store.log_tail(job.id, 1).await?;
    let updated = newest.last().map_or(job.submitted_ms, |line| line.at_ms);
    let status = match job.state.as_str() {
        "cancelled" => TaskStatus::Cancelled,
        _ if job.is_done() => TaskStatus::Completed,
        _ => TaskStatus::Working,
    };
    Ok(Task::new(job.id.to_string(), status, date(job.submitted_ms), date(updated))
        .with_status_message(job.summary.clone())
        .with_poll_interval_ms(POLL_MS))
}

fn date(ms: i64) -> String {
    let since = Duration::from_millis(u64::try_from(ms).unwrap_or(0));
    humantime::format_rfc3339_millis(UNIX_EPOCH + since).to_string()
}

/// Only a task that does not exist, or a fault of our own, is an error of the protocol.
fn protocol_error(refusal: Refusal) -> ErrorData {
    if refusal.status.is_server_error() {
        ErrorData::internal_error(refusal.body.message, None)
    } else {
        ErrorData::invalid_params(refusal.body.message, None)
    }
}
