//! What each tool does: one question to the desk, and its answer in short.

use std::time::Duration;

use drydock_spec::Owner;
use rmcp::model::{CallToolResult, ContentBlock, JsonObject};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Gateway;
use super::body::{job_id, read};
use super::error::Refusal;
use super::rest::{states, within};
use super::tools::{
    ApplyArgs, JobArgs, JobLine, JobLines, ListArgs, NoArgs, PageArgs, SubmitAnswer, SubmitArgs, WaitArgs, split,
};
use super::{rest, words};
use crate::api::{ApplyRemedy, JobView, LoadDataset, MetricsView, ModelList, PlanView, Submission};
use crate::desk::{Answer, LONGEST_WAIT};
use crate::store::Filter;

/// Text for people and models, and the same as data.
pub(super) type Told = Result<CallToolResult, Refusal>;

fn told(text: String, data: &impl Serialize) -> Told {
    let data = serde_json::to_value(data).map_err(|error| Refusal::internal(&error))?;
    let mut result = CallToolResult::structured(data);
    result.content = vec![ContentBlock::text(text)];
    Ok(result)
}

/// A refusal as the model reads it. It carries no structured content, which would have to fit the tool's output
/// schema.
pub(super) fn refused(refusal: Refusal) -> CallToolResult {
    let body = refusal.body;
    let hint = body.hint.map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
    CallToolResult::error(vec![ContentBlock::text(format!("{} ({}){hint}", body.message, body.code))])
}

/// The arguments of a call.
pub(super) fn arguments<T: DeserializeOwned>(arguments: JsonObject) -> Result<T, Refusal> {
    read(Value::Object(arguments)).map_err(|mut refusal: Refusal| {
        refusal.body.code = "invalid_arguments".into();
        if refusal.body.hint.as_deref().is_none_or(|hint| hint.starts_with("GET ")) {
            refusal.body.hint = Some("the tool's input schema describes every argument".into());
        }
        refusal
    })
}

/// Submits a job of one kind; `job` makes it of the options in the call.
pub(super) async fn submit<T: DeserializeOwned>(
    gateway: &Gateway,
    given: JsonObject,
    job: impl FnOnce(T) -> drydock_spec::JobArgs,
) -> Told {
    let (options, submit) = split(given);
    let options: T = arguments(options)?;
    let submit: SubmitArgs = arguments(submit)?;
    let submission = Submission {
        job: job(options),
        priority: submit.priority,
        limits: submit.limits,
        idempotency_key: submit.idempotency_key,
        dry_run: submit.dry_run,
        on_failure: submit.on_failure,
    };
    let desk = gateway.desk.clone();
    let answer = gateway.undisturbed(async move { desk.submit(Owner::local(), submission).await }).await?;
    answered(answer, |plan| format!("call {} again without dry_run", plan.job.kind()))
}

/// What a submission has led to; of a plan `next` says how it is carried out.
fn answered(answer: Answer, next: impl FnOnce(&PlanView) -> String) -> Told {
    match answer {
        Answer::Planned(mut plan) => {
            if let Some(rows) = &mut plan.rows {
                words::brief_rows(rows);
            }
            let next = next(&plan);
            let text = words::plan(&plan);
            told(text, &SubmitAnswer { job: None, created: None, plan: Some(*plan), warnings: vec![], next })
        }
        Answer::Submitted(submitted) => {
            let job = words::brief(submitted.job);
            let text = words::job(&job);
            let (created, next) = (Some(submitted.created), words::next(&job));
            told(text, &SubmitAnswer { job: Some(job), created, plan: None, warnings: submitted.warnings, next })
        }
    }
}

pub(super) async fn get_job(gateway: &Gateway, JobArgs { id }: JobArgs) -> Told {
    job(gateway.desk.job(job_id(&id)?).await?)
}

pub(super) fn job(job: JobView) -> Told {
    let job = words::brief(job);
    told(words::job(&job), &job)
}

pub(super) async fn cancel_job(gateway: &Gateway, JobArgs { id }: JobArgs) -> Told {
    let (desk, id) = (gateway.desk.clone(), job_id(&id)?);
    job(gateway.undisturbed(async move { desk.cancel(id).await }).await?)
}

/// How long `wait_for_job` waits.
pub(super) fn patience(args: &WaitArgs) -> Result<Duration, Refusal> {
    let seconds = u64::from(args.timeout_s.unwrap_or(30));
    if seconds <= LONGEST_WAIT.as_secs() {
        return Ok(Duration::from_secs(seconds));
    }
    Err(Refusal::bad_request("invalid_arguments", format!("timeout_s = {seconds}: out of range"))
        .hint("choose a value from 0 to 45, and call wait_for_job again while the job is not done"))
}

pub(super) async fn list_jobs(gateway: &Gateway, args: ListArgs) -> Told {
    let filter = Filter {
        owner: Some(Owner::local()),
        states: states(args.state.iter().map(String::as_str))?,
        before: args.before.as_deref().map(job_id).transpose()?,
        limit: within(args.limit.unwrap_or(20), 50)?,
    };
    let list = gateway.desk.jobs(&filter).await?;
    let text = words::jobs(&list);
    let jobs = list.jobs.into_iter().map(words::brief).map(|job| JobLine {
        id: job.id,
        kind: job.kind,
        about: job.about,
        state: job.state,
        summary: job.summary,
        submitted_ms: job.submitted_ms,
    });
    told(text, &JobLines { jobs: jobs.collect(), next: list.next })
}

pub(super) async fn get_logs(gateway: &Gateway, args: PageArgs) -> Told {
    let id = job_id(&args.id)?;
    let limit = within(args.limit.unwrap_or(20), 100)?;
    let logs = gateway.desk.logs(id, args.after.map(|after| after.max(0)), limit).await?;
    let logs = words::short_logs(logs, args.after.is_some());
    told(words::logs(id, &logs), &logs)
}

pub(super) async fn get_metrics(gateway: &Gateway, args: PageArgs) -> Told {
    let id = job_id(&args.id)?;
    let limit = within(args.limit.unwrap_or(20), 100)?;
    let view = match args.after {
        Some(after) => gateway.desk.metrics(id, after.max(0), limit).await?,
        None => newest_metrics(gateway, id, limit).await?,
    };
    told(words::metrics(id, &view.metrics, view.next_after), &view)
}

/// The last `limit` metrics. The log holds other lines between them, so the part that is looked at grows until it holds
/// enough.
async fn newest_metrics(gateway: &Gateway, id: drydock_spec::JobId, limit: u32) -> Result<MetricsView, Refusal> {
    let last = gateway.desk.store.job(id).await?.last_seq;
    let mut window = limit.saturating_mul(2);
    loop {
        let after = (last - i64::from(window)).max(0);
        let mut view = gateway.desk.metrics(id, after, window).await?;
        if after == 0 || view.metrics.len() >= limit as usize {
            let surplus = view.metrics.len().saturating_sub(limit as usize);
            view.metrics.drain(..surplus);
            return Ok(view);
        }
        window = window.saturating_mul(8);
    }
}

pub(super) async fn list_models(gateway: &Gateway, NoArgs {}: NoArgs) -> Told {
    let mut list = ModelList { models: gateway.desk.models.list().await? };
    let text = words::models(&list);
    list.models.truncate(words::MOST_ENTRIES);
    told(text, &list)
}

pub(super) async fn load_dataset(gateway: &Gateway, request: LoadDataset) -> Told {
    let desk = gateway.desk.clone();
    let mut loaded = gateway.undisturbed(async move { desk.load_dataset(request).await }).await?;
    words::brief_rows(&mut loaded.preview);
    told(words::dataset(&loaded), &loaded)
}

pub(super) async fn list_artifacts(gateway: &Gateway, JobArgs { id }: JobArgs) -> Told {
    let id = job_id(&id)?;
    let mut list = gateway.desk.artifacts(id).await?;
    let text = words::artifacts(id, &list);
    list.artifacts.truncate(words::MOST_ENTRIES);
    told(text, &list)
}

/// Agents learn of what is not drydock's only that it is there.
pub(super) async fn list_gpus(gateway: &Gateway, NoArgs {}: NoArgs) -> Told {
    let list = gateway.desk.gpus().await?;
    let text = words::gpus(&list);
    told(text, &words::gpu_lines(list))
}

pub(super) async fn explain_failure(gateway: &Gateway, JobArgs { id }: JobArgs) -> Told {
    let id = job_id(&id)?;
    let mut told = gateway.desk.explain(id).await?.ok_or_else(|| rest::not_failed(id))?;
    told.failure.message = words::cut(&told.failure.message, 1000);
    let text = words::explanation(&told);
    self::told(text, &told)
}

pub(super) async fn suggest_remedies(gateway: &Gateway, JobArgs { id }: JobArgs) -> Told {
    let list = gateway.desk.suggest(job_id(&id)?).await?;
    told(words::remedies(&list), &list)
}

pub(super) async fn apply_remedy(gateway: &Gateway, args: ApplyArgs) -> Told {
    let ApplyArgs { id, remedy, anew, dry_run, idempotency_key } = args;
    let (desk, id) = (gateway.desk.clone(), job_id(&id)?);
    let remedy = remedy.map(|text| text.parse().map_err(rest::invalid_remedy)).transpose()?;
    let asked = ApplyRemedy { remedy, anew, dry_run, idempotency_key };
    let answer = gateway.undisturbed(async move { desk.apply_remedy(Owner::local(), id, asked).await }).await?;
    answered(answer, |_| "call apply_remedy again without dry_run".to_owned())
}
