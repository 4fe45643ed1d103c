//! REST: each route asks the desk one question.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use drydock_spec::remedy::InvalidRemedy;
use drydock_spec::{JobId, Owner};
use serde::Deserialize;

use super::Gateway;
use super::body::{Asked, Body, Named, job_id};
use super::error::Refusal;
use crate::api::{
    AddModel, AdviceList, AdviceView, Advise, ApplyRemedy, ArtifactList, CordonGpu, DatasetList, Explanation,
    FailureList, GcReport, GcRequest, GpuList, HostView, JobList, JobView, JoinFingerprints, JoinedFingerprint,
    LoadDataset, LoadedDataset, Logs, MetricsView, ModelList, ModelView, RemedyList, Submission,
};
use crate::desk::{Answer, DeskError};
use crate::store::Filter;

/// Lines of a log, or metrics, that one answer may hold.
pub(super) const MOST_LINES: u32 = 1000;
/// Jobs that one answer may hold.
pub(super) const MOST_JOBS: u32 = 200;

type Granted<T> = Result<T, Refusal>;
type Shared = State<Arc<Gateway>>;

pub(super) async fn submit(
    State(gateway): Shared,
    headers: HeaderMap,
    Body(mut submission): Body<Submission>,
) -> Granted<Response> {
    submission.idempotency_key = key(&headers, submission.idempotency_key)?;
    let desk = gateway.desk.clone();
    let answer = gateway.undisturbed(async move { desk.submit(Owner::local(), submission).await }).await?;
    Ok(self::answer(answer))
}

/// What a submission has led to.
fn answer(answer: Answer) -> Response {
    match answer {
        Answer::Planned(plan) => Json(plan).into_response(),
        Answer::Submitted(submitted) if submitted.created => {
            let place = format!("/v1/jobs/{}", submitted.job.id);
            (StatusCode::CREATED, [(header::LOCATION, place)], Json(submitted)).into_response()
        }
        Answer::Submitted(submitted) => Json(submitted).into_response(),
    }
}

/// The idempotency key: a header and a field of the body mean the same, so they must not disagree.
fn key(headers: &HeaderMap, field: Option<String>) -> Granted<Option<String>> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(field) };
    let value = value.to_str().map_err(|_| {
        Refusal::bad_request("invalid_key", "the Idempotency-Key header holds more than visible ASCII characters")
    })?;
    match field {
        Some(field) if field != value => {
            let message = format!("the Idempotency-Key header says `{value}`, idempotency_key says `{field}`");
            Err(Refusal::bad_request("invalid_key", message).hint("give one of the two"))
        }
        _ => Ok(Some(value.to_owned())),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct JobsAsked {
    state: Option<String>,
    limit: Option<u32>,
    before: Option<String>,
}

pub(super) async fn jobs(State(gateway): Shared, Asked(asked): Asked<JobsAsked>) -> Granted<Json<JobList>> {
    let words = asked.state.as_deref().unwrap_or_default();
    let filter = Filter {
        owner: Some(Owner::local()),
        states: states(words.split(',').filter(|word| !word.is_empty()))?,
        before: asked.before.as_deref().map(job_id).transpose()?,
        limit: within(asked.limit.unwrap_or(50), MOST_JOBS)?,
    };
    Ok(Json(gateway.desk.jobs(&filter).await?))
}

/// The words for states, checked.
pub(super) fn states<'a>(words: impl Iterator<Item = &'a str>) -> Granted<Vec<String>> {
    const KNOWN: [&str; 6] = ["queued", "running", "stopping", "succeeded", "failed", "cancelled"];
    words
        .map(|word| match KNOWN.contains(&word) {
            true => Ok(word.to_owned()),
            false => Err(Refusal::bad_request("invalid_query", format!("state: `{word}` is not a state of a job"))
                .hint(format!("choose from {}", KNOWN.join(", ")))),
        })
        .collect()
}

/// A limit that one answer can keep.
pub(super) fn within(limit: u32, most: u32) -> Granted<u32> {
    if (1..=most).contains(&limit) {
        return Ok(limit);
    }
    Err(Refusal::bad_request("invalid_query", format!("limit = {limit}: out of range"))
        .hint(format!("choose a value from 1 to {most}")))
}

pub(super) async fn job(State(gateway): Shared, Named(id): Named) -> Granted<Json<JobView>> {
    Ok(Json(gateway.desk.job(id).await?))
}

pub(super) async fn cancel(State(gateway): Shared, Named(id): Named) -> Granted<Json<JobView>> {
    let desk = gateway.desk.clone();
    Ok(Json(gateway.undisturbed(async move { desk.cancel(id).await }).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PageAsked {
    after: Option<i64>,
    limit: Option<u32>,
}

impl PageAsked {
    fn after(&self) -> Granted<Option<i64>> {
        match self.after {
            Some(after) if after < 0 => {
                Err(Refusal::bad_request("invalid_query", format!("after = {after}: negative"))
                    .hint("give the number of a line, or 0 for all"))
            }
            after => Ok(after),
        }
    }
}

pub(super) async fn logs(
    State(gateway): Shared,
    Named(id): Named,
    Asked(asked): Asked<PageAsked>,
) -> Granted<Json<Logs>> {
    let limit = within(asked.limit.unwrap_or(100), MOST_LINES)?;
    Ok(Json(gateway.desk.logs(id, asked.after()?, limit).await?))
}

pub(super) async fn metrics(
    State(gateway): Shared,
    Named(id): Named,
    Asked(asked): Asked<PageAsked>,
) -> Granted<Json<MetricsView>> {
    let limit = within(asked.limit.unwrap_or(MOST_LINES), MOST_LINES)?;
    Ok(Json(gateway.desk.metrics(id, asked.after()?.unwrap_or(0), limit).await?))
}

pub(super) async fn artifacts(State(gateway): Shared, Named(id): Named) -> Granted<Json<ArtifactList>> {
    Ok(Json(gateway.desk.artifacts(id).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExplanationAsked {
    words: Option<bool>,
}

pub(super) async fn failure(
    State(gateway): Shared,
    Named(id): Named,
    Asked(asked): Asked<ExplanationAsked>,
) -> Granted<Json<Explanation>> {
    let told = match asked.words {
        Some(true) => Box::pin(gateway.desk.explain_in_words(id)).await?,
        Some(false) | None => gateway.desk.explain(id).await?,
    };
    told.map(Json).ok_or_else(|| not_failed(id))
}

pub(super) fn not_failed(id: JobId) -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "not_failed", format!("no attempt of job `{id}` has failed"))
        .hint("GET /v1/failures (`drydock failures`) lists what has failed")
}

pub(super) fn invalid_remedy(error: InvalidRemedy) -> Refusal {
    Refusal::bad_request("invalid_remedy", error.to_string()).hint("suggest_remedies lists what fits the job")
}

pub(super) async fn remedies(State(gateway): Shared, Named(id): Named) -> Granted<Json<RemedyList>> {
    Ok(Json(gateway.desk.suggest(id).await?))
}

pub(super) async fn apply_remedy(
    State(gateway): Shared,
    headers: HeaderMap,
    Named(id): Named,
    Body(mut asked): Body<ApplyRemedy>,
) -> Granted<Response> {
    asked.idempotency_key = key(&headers, asked.idempotency_key)?;
    let desk = gateway.desk.clone();
    Ok(answer(gateway.undisturbed(async move { desk.apply_remedy(Owner::local(), id, asked).await }).await?))
}

pub(super) async fn advice(State(gateway): Shared) -> Granted<Json<AdviceList>> {
    Ok(Json(gateway.desk.advice().await?))
}

pub(super) async fn advise(
    State(gateway): Shared,
    Body(advise): Body<Advise>,
) -> Granted<(StatusCode, Json<AdviceView>)> {
    let advice = gateway.desk.advise(&Owner::local(), advise).await?;
    Ok((StatusCode::CREATED, Json(advice.into())))
}

pub(super) async fn remove_advice(State(gateway): Shared, Path(number): Path<String>) -> Granted<StatusCode> {
    let number = number.parse().map_err(|_| {
        Refusal::bad_request("bad_request", format!("`{number}` is not the number of advice"))
            .hint("GET /v1/remedies lists what was advised")
    })?;
    gateway.desk.remove_advice(number).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn join(
    State(gateway): Shared,
    Path(fingerprint): Path<String>,
    Body(JoinFingerprints { into }): Body<JoinFingerprints>,
) -> Granted<Json<JoinedFingerprint>> {
    Ok(Json(gateway.desk.join(fingerprint, into).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FailuresAsked {
    limit: Option<u32>,
}

pub(super) async fn failures(State(gateway): Shared, Asked(asked): Asked<FailuresAsked>) -> Granted<Json<FailureList>> {
    Ok(Json(gateway.desk.failures(within(asked.limit.unwrap_or(50), MOST_LINES)?).await?))
}

pub(super) async fn models(State(gateway): Shared) -> Granted<Json<ModelList>> {
    let models = gateway.desk.models.list().await?;
    Ok(Json(ModelList { models }))
}

pub(super) async fn add_model(
    State(gateway): Shared,
    Body(request): Body<AddModel>,
) -> Granted<(StatusCode, Json<ModelView>)> {
    let models = gateway.desk.models.clone();
    let added = gateway.undisturbed(async move { models.add(request).await }).await?;
    Ok((StatusCode::CREATED, Json(added)))
}

pub(super) async fn remove_model(State(gateway): Shared, Path(name): Path<String>) -> Granted<StatusCode> {
    if gateway.desk.models.remove(&name).await? {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(Refusal::new(StatusCode::NOT_FOUND, "unknown_model", format!("no model `{name}`"))
        .hint("GET /v1/models lists the models there are"))
}

pub(super) async fn datasets(State(gateway): Shared) -> Granted<Json<DatasetList>> {
    let datasets = gateway.desk.datasets.list().await?;
    Ok(Json(DatasetList { datasets }))
}

pub(super) async fn load_dataset(
    State(gateway): Shared,
    Body(request): Body<LoadDataset>,
) -> Granted<(StatusCode, Json<LoadedDataset>)> {
    let desk = gateway.desk.clone();
    let loaded = gateway.undisturbed(async move { desk.load_dataset(request).await }).await?;
    Ok((StatusCode::CREATED, Json(loaded)))
}

pub(super) async fn remove_dataset(State(gateway): Shared, Path(name): Path<String>) -> Granted<StatusCode> {
    if gateway.desk.datasets.remove(&name).await? {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(Refusal::new(StatusCode::NOT_FOUND, "unknown_dataset", format!("no dataset `{name}`"))
        .hint("GET /v1/datasets lists the datasets there are"))
}

pub(super) async fn gc(
    State(gateway): Shared,
    Body(GcRequest { dry_run }): Body<GcRequest>,
) -> Granted<Json<GcReport>> {
    let retention = gateway.desk.retention.clone();
    let report = gateway.undisturbed(async move { retention.gc_once(dry_run).await.map_err(DeskError::from) });
    Ok(Json(report.await?))
}

pub(super) async fn gpus(State(gateway): Shared) -> Granted<Json<GpuList>> {
    Ok(Json(gateway.desk.gpus().await?))
}

pub(super) async fn cordon(
    State(gateway): Shared,
    Path(uuid): Path<String>,
    Body(CordonGpu { reason }): Body<CordonGpu>,
) -> Granted<Json<GpuList>> {
    let desk = gateway.desk.clone();
    Ok(Json(gateway.undisturbed(async move { desk.cordon(&Owner::local(), &uuid, &reason).await }).await?))
}

pub(super) async fn uncordon(State(gateway): Shared, Path(uuid): Path<String>) -> Granted<Json<GpuList>> {
    let desk = gateway.desk.clone();
    Ok(Json(gateway.undisturbed(async move { desk.uncordon(&uuid).await }).await?))
}

pub(super) async fn host(State(gateway): Shared) -> Granted<Json<HostView>> {
    Ok(Json(gateway.desk.host().await?))
}
