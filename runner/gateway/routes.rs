//! Every route of the gateway in one table, from which both the router and the OpenAPI document are made: what is
//! served is described, and what is described is served.

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::handler::Handler;
use axum::http::{Method, StatusCode};
use axum::routing::{MethodFilter, MethodRouter, on};
use schemars::{JsonSchema, Schema, SchemaGenerator};

use super::error::Refusal;
use super::{Gateway, downloads, follow, health, knowledge, openapi, rest, uploads};
use crate::api::{
    AddModel, AdviceList, AdviceView, Advise, ApplyRemedy, ArtifactList, CordonGpu, DatasetList, ErrorView,
    Explanation, FailureList, GcReport, GcRequest, GpuList, HostView, ImportedKnowledge, JobList, JobView,
    JoinFingerprints, JoinedFingerprint, LoadDataset, LoadedDataset, Logs, MetricsView, ModelList, ModelView, PlanView,
    RemedyList, Submission, SubmittedView,
};
use crate::knowledge::MEDIA_TYPE;

/// Makes a schema when the document is written.
pub(super) type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// A parameter of a path, query or header.
pub(super) struct Parameter {
    pub(super) place: &'static str,
    pub(super) name: &'static str,
    pub(super) required: bool,
    pub(super) told: &'static str,
    pub(super) schema: serde_json::Value,
}

/// An answer that a route may give.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) told: &'static str,
    /// Media type and shape of the body, if there is one.
    pub(super) body: Option<(&'static str, Option<SchemaOf>)>,
}

/// A method on a path.
pub(super) struct Route {
    pub(super) method: Method,
    /// As axum writes it: `{*path}` takes the rest of the path.
    pub(super) path: &'static str,
    /// A name for generated clients.
    pub(super) name: &'static str,
    pub(super) told: &'static str,
    pub(super) parameters: Vec<Parameter>,
    /// Media type and shape of the body, if one is read.
    pub(super) body: Option<(&'static str, Option<SchemaOf>)>,
    pub(super) answers: Vec<Answer>,
    serve: MethodRouter<Arc<Gateway>>,
}

impl Route {
    fn new<T: 'static, H: Handler<T, Arc<Gateway>>>(
        method: Method,
        path: &'static str,
        name: &'static str,
        told: &'static str,
        handler: H,
    ) -> Self {
        // The table holds the five usual methods only, each of which axum knows.
        let filter = MethodFilter::try_from(method.clone()).unwrap_or(MethodFilter::GET);
        let serve = on(filter, handler);
        Self { method, path, name, told, parameters: Vec::new(), body: None, answers: Vec::new(), serve }
    }

    fn get<T: 'static, H: Handler<T, Arc<Gateway>>>(p: &'static str, n: &'static str, t: &'static str, h: H) -> Self {
        Self::new(Method::GET, p, n, t, h)
    }

    fn post<T: 'static, H: Handler<T, Arc<Gateway>>>(p: &'static str, n: &'static str, t: &'static str, h: H) -> Self {
        Self::new(Method::POST, p, n, t, h)
    }

    fn delete<T: 'static, H: Handler<T, Arc<Gateway>>>(
        p: &'static str,
        n: &'static str,
        t: &'static str,
        h: H,
    ) -> Self {
        Self::new(Method::DELETE, p, n, t, h)
    }

    fn parameter(
        mut self,
        place: &'static str,
        name: &'static str,
        told: &'static str,
        schema: serde_json::Value,
    ) -> Self {
        self.parameters.push(Parameter { place, name, required: place == "path", told, schema });
        self
    }

    fn path(self, name: &'static str, told: &'static str) -> Self {
        self.parameter("path", name, told, serde_json::json!({"type": "string", "minLength": 1}))
    }

    fn job(self) -> Self {
        self.parameter("path", "id", "The job's id.", job_id())
    }

    fn page(self, most: u32) -> Self {
        let limit = serde_json::json!({"type": "integer", "minimum": 1, "maximum": most});
        self.parameter("query", "after", "Number of the last line that is known.", line_number()).parameter(
            "query",
            "limit",
            "Lines at most.",
            limit,
        )
    }

    fn reads<T: JsonSchema>(mut self) -> Self {
        self.body = Some(("application/json", Some(|generator| generator.subschema_for::<T>())));
        self
    }

    fn takes(mut self, media: &'static str) -> Self {
        self.body = Some((media, None));
        self
    }

    fn digest(self) -> Self {
        let digest = serde_json::json!({"type": "string", "pattern": "^[0-9a-f]{64}$"});
        self.parameter("path", "sha256", "The content's SHA-256 in lower-case hex.", digest)
    }

    fn answers<T: JsonSchema>(self, status: u16, told: &'static str) -> Self {
        self.with(status, told, Some(("application/json", Some(|generator| generator.subschema_for::<T>()))))
    }

    fn says(self, status: u16, told: &'static str, media: &'static str) -> Self {
        self.with(status, told, Some((media, None)))
    }

    fn empty(self, status: u16, told: &'static str) -> Self {
        self.with(status, told, None)
    }

    fn with(mut self, status: u16, told: &'static str, body: Option<(&'static str, Option<SchemaOf>)>) -> Self {
        self.answers.push(Answer { status, told, body });
        self
    }
}

fn job_id() -> serde_json::Value {
    serde_json::json!({"type": "string", "pattern": "^[0-7][0-9A-HJKMNP-TV-Z]{25}$"})
}

fn line_number() -> serde_json::Value {
    serde_json::json!({"type": "integer", "minimum": 0, "maximum": i64::MAX})
}

/// The table.
pub(super) fn all() -> Vec<Route> {
    let mut routes = jobs();
    routes.extend(catalog());
    routes.extend(house());
    routes
}

fn jobs() -> Vec<Route> {
    let text = serde_json::json!({"type": "string"});
    vec![
        Route::post("/v1/jobs", "submit_job", "Submit a job, or plan it with dry_run.", rest::submit)
            .parameter("header", "Idempotency-Key", "Equals idempotency_key in the body.", text.clone())
            .reads::<Submission>()
            .answers::<SubmittedOrPlanned>(200, "Accepted before under the same key, or the plan of a dry run.")
            .answers::<SubmittedView>(201, "Accepted."),
        Route::get("/v1/jobs", "list_jobs", "Jobs, newest first.", rest::jobs)
            .parameter("query", "state", "Only these states, such as `running,queued`.", text)
            .parameter(
                "query",
                "limit",
                "Jobs at most.",
                serde_json::json!({"type": "integer", "minimum": 1, "maximum": 200}),
            )
            .parameter("query", "before", "Only jobs older than this one.", job_id())
            .answers::<JobList>(200, "A page of jobs."),
        Route::get("/v1/jobs/{id}", "get_job", "A job as it stands.", rest::job)
            .job()
            .answers::<JobView>(200, "The job."),
        Route::post(
            "/v1/jobs/{id}/cancel",
            "cancel_job",
            "Ask for a job's end; harmless if it has ended.",
            rest::cancel,
        )
        .job()
        .answers::<JobView>(200, "The job."),
        Route::get("/v1/jobs/{id}/events", "follow_job", "A job's log as server-sent events.", follow::events)
            .job()
            .parameter("query", "after", "As Last-Event-ID, which goes before it.", line_number())
            .parameter("header", "Last-Event-ID", "Resume after this line.", line_number())
            .says(
                200,
                "Each line of the log, `event` or `report`; at the end `done` with the job.",
                "text/event-stream",
            )
            .empty(204, "The job has ended and there is nothing new."),
        Route::get(
            "/v1/jobs/{id}/logs",
            "get_logs",
            "Lines of a job's log; the last ones without `after`.",
            rest::logs,
        )
        .job()
        .page(rest::MOST_LINES)
        .answers::<Logs>(200, "Lines, oldest first."),
        Route::get("/v1/jobs/{id}/metrics", "get_metrics", "A job's metrics, oldest first.", rest::metrics)
            .job()
            .page(rest::MOST_LINES)
            .answers::<MetricsView>(200, "Metrics."),
        Route::get("/v1/jobs/{id}/failure", "explain_failure", "Why a job failed.", rest::failure)
            .job()
            .parameter(
                "query",
                "words",
                "Have the configured language model say it in its words as well.",
                serde_json::json!({"type": "boolean"}),
            )
            .answers::<Explanation>(200, "Why, how often that was seen, and what was different before.")
            .answers::<ErrorView>(404, "No attempt of it has failed."),
        Route::get(
            "/v1/jobs/{id}/remedies",
            "suggest_remedies",
            "What helps against a job's failure, the surest first.",
            rest::remedies,
        )
        .job()
        .answers::<RemedyList>(200, "The remedies, each with its record, and what was tried.")
        .answers::<ErrorView>(409, "The job has not failed."),
        Route::post(
            "/v1/jobs/{id}/remedies",
            "apply_remedy",
            "Submit a failed job again with a remedy worked in.",
            rest::apply_remedy,
        )
        .job()
        .parameter(
            "header",
            "Idempotency-Key",
            "Equals idempotency_key in the body.",
            serde_json::json!({"type": "string"}),
        )
        .reads::<ApplyRemedy>()
        .answers::<SubmittedOrPlanned>(200, "Accepted before under the same key, or the plan of a dry run.")
        .answers::<SubmittedView>(201, "Accepted.")
        .answers::<ErrorView>(409, "The job has not failed, or nothing is known that would help."),
        Route::get("/v1/jobs/{id}/artifacts", "list_artifacts", "What a job has made.", rest::artifacts)
            .job()
            .answers::<ArtifactList>(200, "The artifacts."),
        Route::get("/v1/jobs/{id}/artifacts/{*path}", "get_artifact", "Download an artifact.", downloads::artifact)
            .job()
            .path("path", "The artifact's path, as listed.")
            .says(200, "The file.", "application/octet-stream")
            .answers::<ErrorView>(410, "It was removed, as the configuration says; the job's account stays."),
    ]
}

fn catalog() -> Vec<Route> {
    vec![
        Route::get("/v1/models", "list_models", "The models in the store.", rest::models)
            .answers::<ModelList>(200, "The models."),
        Route::post("/v1/models", "add_model", "Add a model to the store.", rest::add_model)
            .reads::<AddModel>()
            .answers::<ModelView>(201, "The model."),
        Route::delete("/v1/models/{name}", "remove_model", "Forget a model.", rest::remove_model)
            .path("name", "The model's name.")
            .empty(204, "Forgotten."),
        Route::get("/v1/datasets", "list_datasets", "The datasets in the store.", rest::datasets)
            .answers::<DatasetList>(200, "The datasets."),
        Route::post("/v1/datasets", "load_dataset", "Register a dataset and see its first rows.", rest::load_dataset)
            .reads::<LoadDataset>()
            .answers::<LoadedDataset>(201, "The dataset."),
        Route::delete("/v1/datasets/{name}", "remove_dataset", "Forget a dataset.", rest::remove_dataset)
            .path("name", "The dataset's name.")
            .empty(204, "Forgotten."),
        Route::new(Method::HEAD, "/v1/blobs/{sha256}", "has_blob", "Whether a file is in the store.", uploads::has)
            .digest()
            .empty(200, "It is.")
            .empty(404, "It is not."),
        Route::new(Method::PUT, "/v1/blobs/{sha256}", "put_blob", "Put a file into the store.", uploads::put)
            .digest()
            .takes("application/octet-stream")
            .empty(200, "It was there already.")
            .empty(201, "Stored."),
    ]
}

fn house() -> Vec<Route> {
    vec![
        Route::get(
            "/v1/failures",
            "list_failures",
            "What has failed, those that are the same together.",
            rest::failures,
        )
        .parameter(
            "query",
            "limit",
            "Kinds of failures at most.",
            serde_json::json!({"type": "integer", "minimum": 1, "maximum": rest::MOST_LINES}),
        )
        .answers::<FailureList>(200, "The newest first."),
        Route::post(
            "/v1/failures/{fingerprint}/join",
            "join_failures",
            "Have one fingerprint stand for another, or for itself alone again.",
            rest::join,
        )
        .path("fingerprint", "As listed, such as `v1:3f2a90b1c4d5e6f70819`.")
        .reads::<JoinFingerprints>()
        .answers::<JoinedFingerprint>(200, "What stands for it now.")
        .answers::<ErrorView>(404, "No such failure has been seen."),
        Route::get("/v1/remedies", "list_advice", "Remedies that people advise.", rest::advice)
            .answers::<AdviceList>(200, "The newest first."),
        Route::post("/v1/remedies", "add_advice", "Advise a remedy.", rest::advise)
            .reads::<Advise>()
            .answers::<AdviceView>(201, "It is kept."),
        Route::delete("/v1/remedies/{number}", "remove_advice", "Take advice back.", rest::remove_advice)
            .path("number", "As listed.")
            .empty(204, "It is gone."),
        Route::get(
            "/v1/knowledge",
            "export_knowledge",
            "What was learnt about failures, for another installation: without names, paths and secrets.",
            knowledge::export,
        )
        .parameter(
            "query",
            "name",
            "What others are to call this installation.",
            serde_json::json!({"type": "string", "maxLength": 40}),
        )
        .parameter(
            "query",
            "notes",
            "Whether people's reasons for their advice go with it.",
            serde_json::json!({"type": "boolean"}),
        )
        .says(200, "A line that says who speaks; then one for each failure and each remedy.", MEDIA_TYPE),
        Route::post(
            "/v1/knowledge",
            "import_knowledge",
            "Take over what another installation has learnt, as advice.",
            knowledge::import,
        )
        .takes(MEDIA_TYPE)
        .answers::<ImportedKnowledge>(200, "What was new in it.")
        .answers::<ErrorView>(409, "It is this installation's own."),
        Route::get("/v1/host", "get_host", "The host, its engine, and what is wrong with them.", rest::host)
            .answers::<HostView>(200, "The host."),
        Route::get("/v1/gpus", "list_gpus", "The host's GPUs, how they are and who has them.", rest::gpus)
            .answers::<GpuList>(200, "By their places."),
        Route::post(
            "/v1/gpus/{uuid}/cordon",
            "cordon_gpu",
            "Have no job get a GPU; what runs on it goes on.",
            rest::cordon,
        )
        .path("uuid", "As listed, such as `GPU-5a2e...`; not a slice's.")
        .reads::<CordonGpu>()
        .answers::<GpuList>(200, "The GPUs as they are now."),
        Route::post(
            "/v1/gpus/{uuid}/uncordon",
            "uncordon_gpu",
            "Let jobs have a GPU again; harmless if they may.",
            rest::uncordon,
        )
        .path("uuid", "As listed.")
        .answers::<GpuList>(200, "The GPUs as they are now."),
        Route::post("/v1/gc", "collect_garbage", "Remove what has had its time, or say what that is.", rest::gc)
            .reads::<GcRequest>()
            .answers::<GcReport>(200, "What was removed, or would be."),
        Route::get("/v1/openapi.json", "get_openapi", "This document.", openapi::serve).says(
            200,
            "OpenAPI 3.1.",
            "application/json",
        ),
        Route::get("/healthz", "healthz", "Whether the gateway's process answers.", health::alive).says(
            200,
            "It does.",
            "text/plain",
        ),
        Route::get("/readyz", "readyz", "Whether jobs can be accepted and started.", health::ready)
            .answers::<health::Readiness>(200, "They can.")
            .answers::<health::Readiness>(503, "They cannot, and why."),
        Route::get("/metrics", "metrics", "Numbers for Prometheus.", health::metrics).says(
            200,
            "Prometheus' text format.",
            "text/plain",
        ),
    ]
}

/// The two things that 200 may mean for a submission.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "a shape for the document; the answers are serialized as what they are")]
enum SubmittedOrPlanned {
    Submitted(Box<SubmittedView>),
    Planned(Box<PlanView>),
}

/// The routes of the table, and words for whoever asks for another one.
pub(super) fn router(routes: Vec<Route>, max_body: u64) -> Router<Arc<Gateway>> {
    routes
        .into_iter()
        .fold(Router::new(), |router, route| router.route(route.path, route.serve))
        .fallback(|| async {
            Refusal::new(StatusCode::NOT_FOUND, "no_such_route", "there is nothing at this path")
                .hint("GET /v1/openapi.json lists what there is; MCP is at /mcp")
        })
        .method_not_allowed_fallback(|| async {
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "no_such_method", "this path does not take this method")
                .hint("GET /v1/openapi.json lists what there is")
        })
        .layer(DefaultBodyLimit::max(usize::try_from(max_body).unwrap_or(usize::MAX)))
}
