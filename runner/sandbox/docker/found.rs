//! What `inspect` says, in the seam's words. The list endpoint can be stale; only this answer is decided upon.

use std::collections::HashMap;
use std::time::UNIX_EPOCH;

use bollard::models::{ContainerInspectResponse, ContainerState, ContainerStateStatusEnum};
use drydock_spec::{Attempt, TraceId};

use super::error::{speaks_of_a_full_disk, speaks_of_a_lost_runtime};
use super::gpus::speaks_of_injection;
use crate::sandbox::gpus::Injector;
use crate::sandbox::{ContainerName, Exit, Found, Labels, Status};

const INSTANCE: &str = "drydock.instance";
const JOB: &str = "drydock.job";
const ATTEMPT: &str = "drydock.attempt";
const FENCE: &str = "drydock.fence";
const TRACE_ID: &str = "drydock.trace-id";
const INJECTOR: &str = "drydock.injector";
const GPUS: &str = "drydock.gpus";

/// How the engine writes "never".
const NEVER: &str = "0001-01-01T00:00:00Z";

/// The labels as the engine keeps them.
pub(super) fn label_map(labels: &Labels) -> HashMap<String, String> {
    HashMap::from([
        (INSTANCE.to_owned(), labels.instance.clone()),
        (JOB.to_owned(), labels.job.to_string()),
        (ATTEMPT.to_owned(), labels.attempt.to_string()),
        (FENCE.to_owned(), labels.fence.clone()),
        (TRACE_ID.to_owned(), labels.trace_id.to_string()),
    ])
}

/// The labels of a container that was given GPUs.
pub(super) fn gpu_labels(injector: Injector, gpus: &[String]) -> [(String, String); 2] {
    [(INJECTOR.to_owned(), injector.word().to_owned()), (GPUS.to_owned(), gpus.join(","))]
}

/// The filter that selects the containers of an installation.
pub(super) fn of_instance(instance: &str) -> HashMap<String, Vec<String>> {
    HashMap::from([("label".to_owned(), vec![format!("{INSTANCE}={instance}")])])
}

/// What is missing in an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Lack {
    /// What every container has: the engine did not answer in full.
    Part(String),
    /// What every container of ours has.
    Label(String),
}

impl From<&str> for Lack {
    fn from(part: &str) -> Self {
        Self::Part(part.to_owned())
    }
}

/// A container's first process on the engine's host.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FirstProcess {
    /// The whole id of the container.
    pub(super) container: String,
    /// As the engine counts; zero if there is none.
    pub(super) pid: i64,
}

/// The GPUs that a container was given.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) injector: Injector,
    /// UUIDs of GPUs and slices.
    pub(super) gpus: Vec<String>,
}

/// A container as the engine shows it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) found: Found,
    pub(super) process: FirstProcess,
    pub(super) gpus: Option<Given>,
}

/// The container as it is, or what is missing in the answer to recognise it as one of ours.
pub(super) fn read(answer: ContainerInspectResponse) -> Result<Seen, Lack> {
    let name = answer.name.ok_or("no name")?;
    let created = answer.created.ok_or("no creation time")?;
    let created =
        humantime::parse_rfc3339(&created).map_err(|error| Lack::Part(format!("creation time {created}: {error}")))?;
    let labels = answer.config.and_then(|config| config.labels).unwrap_or_default();
    let state = answer.state.ok_or("no state")?;
    let process = FirstProcess { container: answer.id.unwrap_or_default(), pid: state.pid.unwrap_or_default() };
    let gpus = read_gpus(&labels);
    let found = Found {
        id: process.container.clone(),
        // The engine writes a slash before the name.
        name: ContainerName(name.trim_start_matches('/').to_owned()),
        labels: read_labels(&labels)?,
        status: read_status(state, gpus.is_some())?,
        created_ms: created.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64),
    };
    Ok(Seen { found, process, gpus })
}

fn read_gpus(labels: &HashMap<String, String>) -> Option<Given> {
    let injector = Injector::of_word(labels.get(INJECTOR)?)?;
    Some(Given { injector, gpus: labels.get(GPUS)?.split(',').map(str::to_owned).collect() })
}

fn read_labels(labels: &HashMap<String, String>) -> Result<Labels, Lack> {
    let get = |key: &str| labels.get(key).cloned().ok_or_else(|| Lack::Label(format!("no label `{key}`")));
    Ok(Labels {
        instance: get(INSTANCE)?,
        job: get(JOB)?.parse().map_err(|error| Lack::Label(format!("label `{JOB}`: {error}")))?,
        attempt: Attempt(get(ATTEMPT)?.parse().map_err(|error| Lack::Label(format!("label `{ATTEMPT}`: {error}")))?),
        fence: get(FENCE)?,
        trace_id: TraceId(get(TRACE_ID)?),
    })
}

fn read_status(state: ContainerState, with_gpus: bool) -> Result<Status, Lack> {
    use ContainerStateStatusEnum as Engine;
    let never_started = state.started_at.as_deref().is_none_or(|at| at == NEVER);
    Ok(match state.status.ok_or("no status")? {
        Engine::RUNNING | Engine::PAUSED | Engine::RESTARTING | Engine::STOPPING => Status::Running,
        // One whose start failed, or that is being removed, was not necessarily ever running.
        Engine::CREATED | Engine::EXITED | Engine::REMOVING | Engine::DEAD if never_started => {
            // What failed for want of room or of the runtime below the engine can be tried again when that is back, and
            // so can what failed for want of its GPUs: then it shows once more that these are what is wanting.
            let passes = |error: &str| {
                speaks_of_a_lost_runtime(error)
                    || speaks_of_a_full_disk(error)
                    || with_gpus && speaks_of_injection(error)
            };
            let error = state.error.filter(|error| !error.is_empty() && !passes(error));
            Status::Created { error }
        }
        Engine::CREATED | Engine::EXITED | Engine::REMOVING | Engine::DEAD => Status::Exited(Exit {
            code: state.exit_code.ok_or("no exit code")?,
            oom_killed: state.oom_killed.unwrap_or(false),
        }),
        Engine::EMPTY => return Err("an empty status".into()),
    })
}

#[cfg(test)]
mod tests {
    use bollard::models::ContainerConfig;
    use drydock_spec::JobId;

    use super::*;

    fn labels() -> Labels {
        Labels {
            instance: "test".into(),
            job: JobId::from_parts(1, 2),
            attempt: Attempt(3),
            fence: "f".into(),
            trace_id: TraceId::from_bits(4),
        }
    }

    fn answer(status: ContainerStateStatusEnum, started_at: &str) -> ContainerInspectResponse {
        ContainerInspectResponse {
            id: Some("0f".into()),
            name: Some("/drydock-x-3".into()),
            created: Some("2026-11-20T04:00:00.123456789Z".into()),
            config: Some(ContainerConfig { labels: Some(label_map(&labels())), ..Default::default() }),
            state: Some(ContainerState {
                status: Some(status),
                started_at: Some(started_at.into()),
                exit_code: Some(137),
                oom_killed: Some(true),
                error: Some(String::new()),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn an_exited_container_is_read_whole() {
        let Seen { found, .. } = read(answer(ContainerStateStatusEnum::EXITED, "2026-11-20T04:00:01Z")).unwrap();
        assert_eq!(
            found,
            Found {
                name: ContainerName("drydock-x-3".into()),
                id: "0f".into(),
                labels: labels(),
                status: Status::Exited(Exit { code: 137, oom_killed: true }),
                created_ms: 1_795_147_200_123,
            }
        );
    }

    #[test]
    fn a_container_that_never_started_has_not_exited() {
        let mut failed = answer(ContainerStateStatusEnum::EXITED, NEVER);
        failed.state.as_mut().unwrap().error = Some("no such runtime".into());
        let Seen { found: failed, .. } = read(failed).unwrap();
        assert_eq!(failed.status, Status::Created { error: Some("no such runtime".into()) });
        let Seen { found: created, .. } = read(answer(ContainerStateStatusEnum::CREATED, NEVER)).unwrap();
        assert_eq!(created.status, Status::Created { error: None });
    }

    #[test]
    fn a_container_without_our_labels_is_not_ours() {
        let mut foreign = answer(ContainerStateStatusEnum::RUNNING, "2026-11-20T04:00:01Z");
        foreign.config = None;
        assert_eq!(read(foreign), Err(Lack::Label(format!("no label `{INSTANCE}`"))));
    }

    #[test]
    fn half_an_answer_says_nothing_about_whose_container_it_is() {
        let mut half = answer(ContainerStateStatusEnum::RUNNING, "2026-11-20T04:00:01Z");
        half.state = None;
        assert_eq!(read(half), Err(Lack::Part("no state".into())));
    }

    #[test]
    fn a_start_that_failed_for_want_of_the_runtime_or_of_room_can_be_tried_again() {
        for error in ["failed to create shim task: ttrpc: closed: unknown", "write /run/x: no space left on device"] {
            let mut failed = answer(ContainerStateStatusEnum::CREATED, NEVER);
            failed.state.as_mut().unwrap().error = Some(error.into());
            assert_eq!(read(failed).unwrap().found.status, Status::Created { error: None }, "{error}");
        }
    }

    #[test]
    fn a_start_that_failed_for_want_of_a_gpu_can_be_tried_again_by_a_container_that_was_to_have_one() {
        let error = r#"could not select device driver "nvidia" with capabilities: [[gpu compute utility]]"#;
        let mut failed = answer(ContainerStateStatusEnum::CREATED, NEVER);
        failed.state.as_mut().unwrap().error = Some(error.into());
        let mut with_gpus = failed.clone();
        let labels = with_gpus.config.as_mut().unwrap().labels.as_mut().unwrap();
        labels.extend(gpu_labels(Injector::Nvidia, &["GPU-a".into(), "MIG-b".into()]));
        let seen = read(with_gpus).unwrap();
        assert_eq!(seen.found.status, Status::Created { error: None });
        let gpus = vec!["GPU-a".to_owned(), "MIG-b".to_owned()];
        assert_eq!(seen.gpus, Some(Given { injector: Injector::Nvidia, gpus }));
        assert_eq!(read(failed).unwrap().found.status, Status::Created { error: Some(error.into()) });
    }
}
