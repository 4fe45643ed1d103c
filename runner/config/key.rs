//! Every key that can be set: what it takes, and what for.

/// A key of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Such as `gateway.listen`.
    pub path: &'static str,
    /// What is accepted, with an example; follows "write".
    pub accepts: &'static str,
    /// What it is for.
    pub about: &'static str,
}

impl Key {
    /// The environment variable that sets it, such as `DRYDOCK_GATEWAY__LISTEN`.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("DRYDOCK_{}", self.path.replace('.', "__").to_uppercase())
    }

    /// The key of that path.
    #[must_use]
    pub fn find(path: &str) -> Option<&'static Self> {
        KEYS.iter().find(|key| key.path == path)
    }

    /// The known key that looks most like `path`, if one does.
    #[must_use]
    pub fn nearest(path: &str) -> Option<&'static Self> {
        // The last part counts alone as well: people forget the section more often than they misspell a name.
        let likeness = |key: &Key| {
            let name = key.path.rsplit('.').next().unwrap_or(key.path);
            strsim::normalized_damerau_levenshtein(path, key.path)
                .max(strsim::normalized_damerau_levenshtein(path, name) * 0.99)
        };
        let best = KEYS.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
        (likeness(best) >= 0.6).then_some(best)
    }
}

const SIZE: &str = "a size such as \"512 MiB\" or \"10 GiB\"";
const TIME: &str = "a time such as \"90s\", \"30m\" or \"24h\"";
const COUNT: &str = "a whole number from 1 up";
const CPUS: &str = "a number of CPUs such as 1.5";
const ID: &str = "a numeric id above 0, such as 65532";

macro_rules! keys {
    ($($path:literal, $accepts:expr, $about:literal;)*) => {
        &[$(Key { path: $path, accepts: $accepts, about: $about }),*]
    };
}

/// All keys, in the order in which they are shown.
pub const KEYS: &[Key] = keys! {
    "state_dir", "a folder", "database, models, datasets, attempts and artifacts";
    "data_dirs", "a list of folders such as [\"/srv/data\"]", "folders that datasets and models may be read from";
    "gateway.listen", "an address and port such as 127.0.0.1:7717", "address to listen on; port 0 takes a free one";
    "gateway.allowed_hosts", "a list of Host headers such as [\"gpu-box.lan:7717\"]", "Host headers accepted besides loopback's own";
    "gateway.allowed_origins", "a list of origins such as [\"https://example.org\"]", "web pages that may speak to the gateway";
    "gateway.max_body", SIZE, "largest request body, uploads excepted";
    "gateway.max_upload", SIZE, "largest file that may be uploaded";
    "capacity.cpus", CPUS, "CPUs for all jobs together; by default all of the engine's";
    "capacity.memory", SIZE, "memory for all jobs together; by default four fifths of the engine's";
    "sandbox.image", "the name or id of an image", "the worker's image";
    "sandbox.docker_host", "an address such as unix:///var/run/docker.sock", "the engine's address; by default DOCKER_HOST or Docker's own";
    "sandbox.runtime", "the name of an OCI runtime such as runsc", "the OCI runtime; by default the engine's own";
    "sandbox.uid", ID, "user that the worker has inside";
    "sandbox.gid", ID, "group that the worker has inside";
    "sandbox.uids", "a range of users above 0 such as \"70000-70999\"", "users of which every container gets one to itself, in place of uid and gid; needs root";
    "sandbox.nvml", "a file such as /usr/lib64/libnvidia-ml.so.1", "NVIDIA's management library, by which GPUs are looked at; by default the driver's";
    "sandbox.gpus", "\"auto\", \"cdi\", \"nvidia\", \"devices\" or \"off\"", "how containers get GPUs; auto takes the first way that works";
    "sandbox.tmp", SIZE, "size of /tmp inside; counts against the job's memory";
    "sandbox.output_cap", "\"auto\", \"loop_mount\" or \"watched\"", "how the output folder is capped";
    "limits.cpus", CPUS, "CPUs of a job; by default all that jobs may use";
    "limits.disk", SIZE, "room for a job's output";
    "limits.pids", COUNT, "processes and threads of a job";
    "limits.time", TIME, "time that an attempt may take";
    "limits.silence", TIME, "time between two reports of an attempt";
    "limits.grace", TIME, "time from SIGTERM to SIGKILL";
    "limits.max_attempts", "a whole number from 1 to 10", "attempts of a job; only failures of the infrastructure are tried again";
    "limits.gpus", "\"auto\" or a whole number from 0 to 16", "GPUs of a job that computes on them; auto is 1 where the host has any and the worker image says `cuda`";
    "queue.half_life", TIME, "time after which what an owner's jobs have had of the host counts half";
    "queue.patience", TIME, "time after which an owner's oldest job goes to the front of the line";
    "queue.gpu_sharers", COUNT, "jobs that may share a GPU or MIG slice";
    "disk.min_free_state", SIZE, "room kept free on the state folder's disk: with less, no job starts";
    "disk.min_free_engine", SIZE, "the same on the disk of the engine's own folder";
    "retention.artifacts_age", TIME, "how long artifacts are kept after a job's end; by default for ever";
    "retention.artifacts_jobs", COUNT, "jobs whose artifacts are kept, the newest; by default all";
    "retention.artifacts_bytes", SIZE, "size of the artifacts that are kept, the newest; by default any";
    "retention.reports_age", TIME, "how long metrics and what else a job reported on its way are kept; by default for ever";
    "retention.reports_jobs", COUNT, "jobs of which they are kept, the newest; by default all";
    "retention.checkpoints_age", TIME, "how long the last checkpoint of a failed job is kept, for a remedy to go on from";
    "retention.unused_age", TIME, "how long files stay that no model, dataset or job needs any more";
    "remedies.on_failure", "\"ask\", \"auto\" or \"never\"", "what happens when a job fails for a reason of its own, where the job does not say";
    "remedies.time", TIME, "time after a job's first start in which drydock may still apply a remedy by itself";
    "hub.endpoint", "an address such as https://hub.example.org", "address of the model hub; HF_ENDPOINT is honoured as well";
    "hub.token_file", "a file", "file with the hub's token; HF_TOKEN is honoured as well";
    "hub.offline", "true or false", "never ask the hub for anything";
    "wording.endpoint", "an address such as http://127.0.0.1:8000/v1", "endpoint of a language model, in the form of OpenAI's chat completions, for `explain --in-words`; by default none";
    "wording.model", "the name of a model at wording.endpoint", "model that is asked there";
    "wording.key_file", "a file", "file with the key of wording.endpoint";
    "wording.timeout", "a time from \"1s\" to \"5m\"", "time that the language model may take";
    "log.format", "\"text\" or \"json\"", "form of the gateway's log lines on stderr";
    "log.filter", "a filter in the form of RUST_LOG such as \"info\"", "which log lines are written";
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn leaves(value: &serde_json::Value, path: &str, into: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(map) => {
                for (name, value) in map {
                    leaves(value, &if path.is_empty() { name.clone() } else { format!("{path}.{name}") }, into);
                }
            }
            _ => into.push(path.to_owned()),
        }
    }

    #[test]
    fn the_table_names_exactly_the_fields_of_the_configuration() {
        let mut fields = Vec::new();
        leaves(&serde_json::to_value(Config::default()).unwrap(), "", &mut fields);
        let mut keys: Vec<_> = KEYS.iter().map(|key| key.path.to_owned()).collect();
        fields.sort();
        keys.sort();
        assert_eq!(keys, fields);
    }

    #[test]
    fn a_misspelt_key_and_a_key_without_its_section_are_recognised() {
        let nearest = |path| Key::nearest(path).map(|key| key.path);
        assert_eq!(nearest("gateway.listn"), Some("gateway.listen"));
        assert_eq!(nearest("max_upload"), Some("gateway.max_upload"));
        assert_eq!(nearest("zzz"), None);
    }

    #[test]
    fn two_underscores_stand_between_the_levels_of_a_variable() {
        assert_eq!(Key::find("gateway.max_body").unwrap().variable(), "DRYDOCK_GATEWAY__MAX_BODY");
    }
}
