//! Refusals: the one place where what went wrong becomes what a client reads.
//!
//! Every error of the desk is matched here, exhaustively, so that a new one cannot reach a client by accident.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use drydock_spec::{InvalidOptions, TraceId};

use crate::api::{ErrorBody, ErrorView};
use crate::blobs::BlobError;
use crate::datasets::DatasetError;
use crate::desk::{DeskError, GpuError, KnowledgeError, RemedyError};
use crate::hub::HubError;
use crate::models::ModelError;
use crate::plan::PlanError;
use crate::preview::PreviewError;
use crate::remedy::CannotApply;
use crate::retention::RetentionError;
use crate::sandbox::SandboxError;
use crate::store::StoreError;

/// A request that is not granted, in words.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) body: ErrorBody,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        let body = ErrorBody { code: code.to_owned(), message: message.into(), hint: None, options: Vec::new() };
        Self { status, body }
    }

    /// A request that does not say what it should.
    pub(super) fn bad_request(code: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// What an error says, which ends with the next step after a semicolon.
    fn said(status: StatusCode, code: &str, error: &dyn std::error::Error) -> Self {
        let text = error.to_string();
        match text.rsplit_once("; ") {
            Some((message, hint)) => Self::new(status, code, message).hint(hint),
            None => Self::new(status, code, text),
        }
    }

    /// Something that was understood, and cannot be done as it was asked.
    fn unprocessable(code: &str, error: &dyn std::error::Error) -> Self {
        Self::said(StatusCode::UNPROCESSABLE_ENTITY, code, error)
    }

    /// Names the next step.
    #[must_use]
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.body.hint = Some(hint.into());
        self
    }

    pub(super) fn too_large(limit: u64) -> Self {
        let limit = bytesize::ByteSize(limit).display().iec();
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", format!("the body is larger than {limit}"))
            .hint("put large files with PUT /v1/blobs/{sha256}, or raise gateway.max_body in the configuration")
    }

    /// Something that only the operator can mend. Its insides go to the log, its trace id to both.
    pub(super) fn internal(error: &dyn std::error::Error) -> Self {
        let trace_id = TraceId::from_bits(rand::random());
        tracing::error!(%trace_id, error = %error, "a request failed inside");
        let message = format!("drydock could not do its part (trace id {trace_id})");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
            .hint("look for the trace id in the gateway's log")
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(ErrorView { error: self.body })).into_response()
    }
}

impl From<DeskError> for Refusal {
    fn from(error: DeskError) -> Self {
        match error {
            DeskError::Plan(error) => error.into(),
            DeskError::Model(error) => error.into(),
            DeskError::Dataset(error) => error.into(),
            DeskError::Store(error) => error.into(),
            DeskError::Sandbox(error) => error.into(),
            DeskError::Preview(error) => error.into(),
            DeskError::Retention(RetentionError::Store(error)) => error.into(),
            DeskError::Retention(error) => Self::internal(&error),
            DeskError::Remedy(error) => error.into(),
            DeskError::Knowledge(error) => error.into(),
            DeskError::Gpu(error) => error.into(),
        }
    }
}

impl From<RemedyError> for Refusal {
    fn from(error: RemedyError) -> Self {
        let message = error.to_string();
        match error {
            RemedyError::NotFailed(..) => Self::new(StatusCode::CONFLICT, "not_failed", message)
                .hint("only a job that has failed can be done better; get_job says how this one stands"),
            RemedyError::Never(_) => Self::new(StatusCode::CONFLICT, "never_remedied", message)
                .hint("submit it again with the options that you want, and on_failure \"ask\" or \"auto\""),
            RemedyError::NothingKnown(_) => Self::new(StatusCode::CONFLICT, "no_remedy", message)
                .hint("name a remedy of your own, such as `learning_rate * 0.1`; explain_failure says what happened"),
            RemedyError::CannotApply { remedy, error } => match *error {
                CannotApply::Plan(error) => error.into(),
                CannotApply::Unfit(_) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "unfit_remedy", message)
                    .hint(format!("choose another remedy than `{remedy}`; suggest_remedies lists what fits this job")),
            },
            RemedyError::NoSuchFailure(_) => Self::new(StatusCode::NOT_FOUND, "no_such_failure", message)
                .hint("GET /v1/failures (`drydock failures`) lists what has failed, with the fingerprints"),
            RemedyError::NoSuchAdvice(_) => Self::new(StatusCode::NOT_FOUND, "no_such_advice", message)
                .hint("GET /v1/remedies lists what was advised"),
        }
    }
}

impl From<KnowledgeError> for Refusal {
    fn from(error: KnowledgeError) -> Self {
        let message = error.to_string();
        match error {
            KnowledgeError::Line(_) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "not_knowledge", message)
                .hint("nothing was taken over; send the file as `drydock knowledge export` has written it"),
            KnowledgeError::Own(_) => {
                Self::new(StatusCode::CONFLICT, "own_knowledge", message).hint("import it where others are to have it")
            }
            KnowledgeError::Name(_) => Self::bad_request("bad_name", message)
                .hint("choose up to 40 letters, digits, spaces, dots, dashes and underscores"),
        }
    }
}

impl From<GpuError> for Refusal {
    fn from(error: GpuError) -> Self {
        let message = error.to_string();
        match error {
            GpuError::NoSuchGpu(_) => Self::new(StatusCode::NOT_FOUND, "no_such_gpu", message)
                .hint("GET /v1/gpus (`drydock gpus`) lists the GPUs there are, by UUID"),
            GpuError::IsSlice { gpu, .. } => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "is_slice", message).hint(format!("name `{gpu}`"))
            }
            GpuError::Reason => {
                Self::bad_request("bad_reason", message).hint("say in a sentence why no job is to get it")
            }
        }
    }
}

impl From<PreviewError> for Refusal {
    fn from(error: PreviewError) -> Self {
        match error {
            PreviewError::Refused(failure) => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "would_fail", failure.to_string()).hint(failure.hint)
            }
            PreviewError::Sandbox(error) => error.into(),
            PreviewError::TooLong => Self::new(StatusCode::SERVICE_UNAVAILABLE, "preview_too_long", error.to_string())
                .hint("load the dataset without a model, or submit the job without dry_run"),
            PreviewError::Broken(_) | PreviewError::Dir(_) => Self::internal(&error),
        }
    }
}

impl From<PlanError> for Refusal {
    fn from(error: PlanError) -> Self {
        match error {
            PlanError::Options(error) => error.into(),
            PlanError::Model(error) => error.into(),
            PlanError::Dataset(error) => error.into(),
            PlanError::Room(error) => error.into(),
            PlanError::Store(error) => error.into(),
        }
    }
}

impl From<InvalidOptions> for Refusal {
    fn from(InvalidOptions(options): InvalidOptions) -> Self {
        let named: Vec<_> = options.iter().map(ToString::to_string).collect();
        let mut refusal = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_options", named.join("\n"))
            .hint("change every option that is named and submit again");
        refusal.body.options = options;
        refusal
    }
}

impl From<ModelError> for Refusal {
    fn from(error: ModelError) -> Self {
        match error {
            ModelError::Unknown { name, next } => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "unknown_model", format!("no model `{name}`")).hint(next)
            }
            ModelError::Unusable { file, problem } => {
                let message = format!("{file}: {}", problem.problem);
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "unusable_model", message).hint(problem.next)
            }
            ModelError::FromJob { name, problem, next } => {
                let message = format!("`{name}`: {problem}");
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "unusable_job", message).hint(next)
            }
            ModelError::Request(next) => {
                Self::bad_request("bad_request", "it is not clear where the model comes from").hint(next)
            }
            ModelError::Name(error) => Self::unprocessable("bad_name", &error),
            ModelError::Path(error) => Self::unprocessable("bad_path", &error),
            ModelError::Hub(error) => error.into(),
            ModelError::Blob(error) => error.into(),
            ModelError::Store(error) => error.into(),
        }
    }
}

impl From<HubError> for Refusal {
    fn from(error: HubError) -> Self {
        let (status, code) = match error {
            HubError::Blob(error) => return error.into(),
            HubError::Setup(_) => return Self::internal(&error),
            HubError::Offline(_) => (StatusCode::CONFLICT, "hub_offline"),
            HubError::Reference(_) => (StatusCode::BAD_REQUEST, "bad_reference"),
            HubError::NotFound { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "not_on_the_hub"),
            HubError::Denied { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "hub_denied"),
            HubError::Unavailable { .. } => (StatusCode::SERVICE_UNAVAILABLE, "hub_unavailable"),
            HubError::Corrupt { .. } => (StatusCode::BAD_GATEWAY, "hub_corrupt"),
        };
        Self::said(status, code, &error)
    }
}

impl From<BlobError> for Refusal {
    fn from(error: BlobError) -> Self {
        let (status, code) = match &error {
            BlobError::Full { .. } => (StatusCode::INSUFFICIENT_STORAGE, "disk_full"),
            BlobError::Mismatch { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "digest_mismatch"),
            BlobError::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
            BlobError::NotADigest(_) | BlobError::NotAName(_) | BlobError::Interrupted { .. } => {
                (StatusCode::BAD_REQUEST, "bad_request")
            }
            BlobError::Missing(_) => (StatusCode::UNPROCESSABLE_ENTITY, "missing_blob"),
            BlobError::Io { .. } => return Self::internal(&error),
        };
        Self::said(status, code, &error)
    }
}

impl From<DatasetError> for Refusal {
    fn from(error: DatasetError) -> Self {
        match error {
            DatasetError::Unknown { name, next } => {
                let message = format!("no dataset `{name}`");
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "unknown_dataset", message).hint(next)
            }
            DatasetError::File { file, problem, next } => {
                let message = format!("{file}: {problem}");
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "unusable_dataset", message).hint(next)
            }
            DatasetError::Row(row) => {
                let message =
                    format!("{}, {}: {}; the text there: `{}`", row.file, row.place, row.problem, row.excerpt);
                let next = if row.next.is_empty() { "mend the row and load the dataset again" } else { &row.next };
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "unusable_dataset", message).hint(next)
            }
            DatasetError::Request(next) => {
                Self::bad_request("bad_request", "it is not clear where the rows come from").hint(next)
            }
            DatasetError::Name(error) => Self::unprocessable("bad_name", &error),
            DatasetError::Path(error) => Self::unprocessable("bad_path", &error),
            DatasetError::Hub(error) => error.into(),
            DatasetError::Blob(error) => error.into(),
            DatasetError::Store(error) => error.into(),
        }
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::NoSuchJob(id) => Self::new(StatusCode::NOT_FOUND, "no_such_job", format!("no job `{id}`"))
                .hint("list_jobs (GET /v1/jobs) shows the jobs there are"),
            StoreError::KeyReused { key, job } => {
                let message = format!("idempotency key `{key}` was used for job `{job}` with other options");
                Self::new(StatusCode::CONFLICT, "key_reused", message).hint("use a new key for a new job")
            }
            StoreError::Full(_) => {
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "disk_full", "no room left for the database")
                    .hint("free disk space on the gateway's host and try again")
            }
            StoreError::LeaseLost { .. }
            | StoreError::Transition(_)
            | StoreError::Corrupt(_)
            | StoreError::InUse(_)
            | StoreError::Database(_) => Self::internal(&error),
        }
    }
}

impl From<SandboxError> for Refusal {
    fn from(error: SandboxError) -> Self {
        match &error {
            SandboxError::Unreachable(_) | SandboxError::TimedOut(..) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "engine_away", "the container engine does not answer")
                    .hint("run `drydock doctor` on the gateway's host, and try again")
            }
            SandboxError::ImageMissing(image) => {
                let message = format!("worker image `{image}` is not on the gateway's host");
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "image_missing", message)
                    .hint("build it with `make image`, or name another one in the configuration")
            }
            SandboxError::NoRoom { .. } => Self::new(
                StatusCode::INSUFFICIENT_STORAGE,
                "disk_full",
                "no room left on the disk of the container engine",
            )
            .hint("free disk space on the gateway's host and try again"),
            SandboxError::ImageHasVolumes { .. }
            | SandboxError::RuntimeMissing(_)
            | SandboxError::NameTaken(_)
            | SandboxError::NoContainer(_)
            | SandboxError::MountRefused(_)
            | SandboxError::NoInjection { .. }
            | SandboxError::NoInjector(_)
            | SandboxError::Failed { .. }
            | SandboxError::Refused { .. } => Self::internal(&error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_insides_of_the_database_stay_inside() {
        let refusal = Refusal::from(StoreError::Database("disk I/O error at /var/lib/secret.db".into()));
        assert_eq!(refusal.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(!refusal.body.message.contains("secret"), "{}", refusal.body.message);
        assert!(refusal.body.message.contains("trace id"), "{}", refusal.body.message);
    }
}
