//! Defaults, a file, the environment and flags, put on top of each other in this order.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};

use super::{BadKey, Config, ConfigError, Key};

/// Where a configuration is read from. Nothing else is looked at, so that the same sources give the same result.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    pub file: Option<PathBuf>,
    /// The process's environment.
    pub environment: Vec<(String, String)>,
    pub flags: Vec<Flag>,
    /// Relative paths that do not come from the file start here.
    pub folder: PathBuf,
}

/// A flag of the command line that sets a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flag {
    /// Such as `--listen`.
    pub flag: &'static str,
    /// Such as `gateway.listen`.
    pub key: &'static str,
    pub value: String,
}

/// A configuration, and where each of its values came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub config: Config,
    /// By key: `default`, a file's path, an environment variable or a flag.
    pub origins: BTreeMap<&'static str, String>,
    /// By key, as it was written there; absent where nothing is set.
    pub values: BTreeMap<&'static str, serde_json::Value>,
}

impl Sources {
    /// What this process was given. `file` is the value of `--config`.
    #[must_use]
    pub fn of_process(file: Option<PathBuf>, flags: Vec<Flag>) -> Self {
        let file = file.or_else(|| std::env::var_os("DRYDOCK_CONFIG").map(PathBuf::from)).or_else(|| {
            let base = std::env::var_os("XDG_CONFIG_HOME")
                .map(PathBuf::from)
                .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".config")))?;
            Some(base.join("drydock/config.toml")).filter(|path| path.is_file())
        });
        // Values that are not UTF-8 cannot be valid settings; they are shown as they are refused.
        let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
        let environment = std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect();
        Self { file, environment, flags, folder: std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")) }
    }
}

/// Reads the configuration; what comes out is complete and its paths are absolute.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
    let mut layers = vec![Layer::of_defaults()];
    if let Some(path) = &sources.file {
        layers.push(Layer::of_file(&sources.folder.join(path))?);
    }
    layers.extend(sources.environment.iter().filter_map(|(name, value)| Layer::of_variable(name, value)));
    layers.extend(sources.flags.iter().map(Layer::of_flag));

    let unknown: Vec<_> = layers.iter().flat_map(Layer::unknown_keys).collect();
    if !unknown.is_empty() {
        return Err(ConfigError::UnknownKeys(unknown));
    }
    let merged = layers.into_iter().fold(Figment::new(), Figment::merge);
    let mut config: Config = merged.extract().map_err(|error| bad_value(&merged, &error.path.join(".")))?;

    let origins = super::KEYS.iter().map(|key| (key.path, origin(&merged, key.path))).collect();
    let mut loaded = Loaded { values: values(&merged), origins, config: Config::default() };
    make_absolute(&mut config, &loaded.origins, sources);
    loaded.show_paths(&config);
    loaded.config = config;
    check(&loaded)?;
    Ok(loaded)
}

/// Settings from one place.
struct Layer {
    origin: String,
    settings: Dict,
}

const DEFAULT: &str = "default";

impl Layer {
    fn of_defaults() -> Self {
        let settings = Value::serialize(Config::default()).ok().and_then(Value::into_dict).unwrap_or_default();
        Self { origin: DEFAULT.into(), settings }
    }

    fn of_file(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::Unreadable { path: path.to_owned(), reason: error.to_string() })?;
        let not_toml = |reason: String| ConfigError::NotToml { path: path.to_owned(), reason };
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| not_toml(error.to_string()))?;
        let value = Value::serialize(table).map_err(|error| not_toml(error.to_string()))?;
        Ok(Self { origin: path.display().to_string(), settings: value.into_dict().unwrap_or_default() })
    }

    /// `DRYDOCK_GATEWAY__LISTEN` sets `gateway.listen`; other variables set nothing.
    fn of_variable(name: &str, value: &str) -> Option<Self> {
        let key = name.strip_prefix("DRYDOCK_")?.to_lowercase().replace("__", ".");
        // Other programs name variables after services (Kubernetes sets DRYDOCK_PORT for one called drydock), so a
        // name of one level counts only if it is a key or looks like a misspelt one.
        let one_level = !key.contains('.');
        let near = || Key::nearest(&key).is_some_and(|near| !near.path.contains('.'));
        let other_meaning = matches!(key.as_str(), "config" | "url");
        if other_meaning || one_level && Key::find(&key).is_none() && !near() {
            return None;
        }
        Some(Self::of_text(format!("environment variable {name}"), &key, value))
    }

    fn of_flag(flag: &Flag) -> Self {
        Self::of_text(format!("flag {}", flag.flag), flag.key, &flag.value)
    }

    fn of_text(origin: String, key: &str, value: &str) -> Self {
        let settings = figment::util::nest(key, typed(value)).into_dict().unwrap_or_default();
        Self { origin, settings }
    }

    fn unknown_keys(&self) -> Vec<BadKey> {
        let mut unknown = Vec::new();
        find_unknown(&self.settings, "", &mut unknown);
        unknown
            .into_iter()
            .map(|key| BadKey { origin: self.origin.clone(), nearest: Key::nearest(&key).map(|key| key.path), key })
            .collect()
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin.clone())
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        Ok(Profile::Default.collect(self.settings.clone()))
    }
}

/// Text from a variable or flag: lists, booleans and numbers as in TOML, everything else as it stands.
fn typed(text: &str) -> Value {
    let plain = || Value::from(text);
    if text.starts_with(['[', '"', '\'']) {
        let parsed = format!("v = {text}").parse::<toml::Table>().ok().and_then(|mut table| table.remove("v"));
        return parsed.and_then(|value| Value::serialize(value).ok()).unwrap_or_else(plain);
    }
    if let Ok(value) = text.parse::<bool>() {
        return value.into();
    }
    if let Ok(value) = text.parse::<i64>() {
        return value.into();
    }
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() => value.into(),
        _ => plain(),
    }
}

/// Collects the paths in `settings` that are neither keys nor sections.
fn find_unknown(settings: &Dict, section: &str, unknown: &mut Vec<String>) {
    for (name, value) in settings {
        let path = if section.is_empty() { name.clone() } else { format!("{section}.{name}") };
        let is_section = super::KEYS.iter().any(|key| key.path.starts_with(&format!("{path}.")));
        match value {
            Value::Dict(_, inner) if is_section || !inner.is_empty() => find_unknown(inner, &path, unknown),
            // A plain value in a section's place is a bad value, which extraction reports.
            _ if is_section || Key::find(&path).is_some() => {}
            _ => unknown.push(path),
        }
    }
}

fn origin(merged: &Figment, key: &str) -> String {
    merged.find_metadata(key).map_or_else(|| DEFAULT.to_owned(), |metadata| metadata.name.to_string())
}

fn values(merged: &Figment) -> BTreeMap<&'static str, serde_json::Value> {
    super::KEYS
        .iter()
        .filter_map(|key| Some((key.path, serde_json::to_value(merged.find_value(key.path).ok()?).ok()?)))
        .filter(|(_, value)| !value.is_null())
        .collect()
}

/// The error for a value that does not fit `path`, a key or an element within one.
fn bad_value(merged: &Figment, path: &str) -> ConfigError {
    let key = super::KEYS.iter().find(|key| path == key.path || path.starts_with(&format!("{}.", key.path)));
    let path = key.map_or(path, |key| key.path);
    let value = merged.find_value(path).ok().and_then(|value| serde_json::to_string(&value).ok());
    ConfigError::BadValue {
        origin: origin(merged, path),
        key: path.to_owned(),
        value: value.unwrap_or_default(),
        accepts: key.map_or("a section of its own, such as [gateway]", |key| key.accepts).to_owned(),
    }
}

/// Paths from the file start at the file's folder, all others at the working folder; `~/` is the home folder.
fn make_absolute(config: &mut Config, origins: &BTreeMap<&'static str, String>, sources: &Sources) {
    let home = sources.environment.iter().find(|(name, _)| name == "HOME").map(|(_, home)| PathBuf::from(home));
    let file = sources.file.as_ref().map(|file| sources.folder.join(file));
    let absolute = |key: &str, path: &Path| {
        let from_file = file.as_ref().filter(|file| origins.get(key) == Some(&file.display().to_string()));
        let base = from_file.and_then(|file| file.parent()).unwrap_or(&sources.folder);
        let path = match (path.strip_prefix("~"), &home) {
            (Ok(rest), Some(home)) => home.join(rest),
            _ => base.join(path),
        };
        path.components().filter(|part| *part != Component::CurDir).collect::<PathBuf>()
    };
    config.state_dir = absolute("state_dir", &config.state_dir);
    for folder in &mut config.data_dirs {
        *folder = absolute("data_dirs", folder);
    }
    if let Some(file) = &mut config.hub.token_file {
        *file = absolute("hub.token_file", file);
    }
    if let Some(file) = &mut config.wording.key_file {
        *file = absolute("wording.key_file", file);
    }
}

impl Loaded {
    /// The values of paths as they are in force, not as they were written.
    fn show_paths(&mut self, config: &Config) {
        self.values.insert("state_dir", config.state_dir.display().to_string().into());
        let folders: Vec<_> = config.data_dirs.iter().map(|folder| folder.display().to_string()).collect();
        self.values.insert("data_dirs", folders.into());
        if let Some(file) = &config.hub.token_file {
            self.values.insert("hub.token_file", file.display().to_string().into());
        }
        if let Some(file) = &config.wording.key_file {
            self.values.insert("wording.key_file", file.display().to_string().into());
        }
    }
}

/// What the types alone cannot say.
fn check(loaded: &Loaded) -> Result<(), ConfigError> {
    let config = &loaded.config;
    let (limits, wording) = (&config.limits, &config.wording);
    let cpus = |cpus: Option<f64>| cpus.is_none_or(|cpus| cpus > 0.0 && cpus.is_finite());
    let address = |address: &Option<String>, schemes: &[&str]| {
        address.as_ref().is_none_or(|address| schemes.iter().any(|scheme| address.starts_with(scheme)))
    };
    let origin_form = |origin: &String| origin.contains("://") && !origin.ends_with('/');
    let accepted = [
        ("state_dir", !config.state_dir.as_os_str().is_empty()),
        ("gateway.allowed_origins", config.gateway.allowed_origins.iter().all(origin_form)),
        ("gateway.allowed_hosts", !config.gateway.allowed_hosts.iter().any(|host| host.contains('/'))),
        ("capacity.cpus", cpus(config.capacity.cpus)),
        ("sandbox.image", !config.sandbox.image.trim().is_empty()),
        ("sandbox.docker_host", address(&config.sandbox.docker_host, &["unix://", "tcp://", "http://", "https://"])),
        // Root inside would be root's share of the host's files, should the walls fall.
        ("sandbox.uid", config.sandbox.uid > 0),
        ("sandbox.gid", config.sandbox.gid > 0),
        ("limits.cpus", cpus(limits.cpus)),
        ("limits.pids", limits.pids > 0),
        ("limits.time", !limits.time.is_zero()),
        ("limits.silence", !limits.silence.is_zero()),
        ("limits.max_attempts", (1..=10).contains(&limits.max_attempts)),
        ("queue.half_life", !config.queue.half_life.is_zero()),
        ("queue.gpu_sharers", config.queue.gpu_sharers > 0),
        ("hub.endpoint", address(&config.hub.endpoint, &["http://", "https://"])),
        (
            "wording.endpoint",
            wording.endpoint().is_none_or(|url| url.starts_with("http://") || url.starts_with("https://")),
        ),
        ("wording.model", wording.endpoint().is_none() || !wording.model.trim().is_empty()),
        ("wording.timeout", (1..=300).contains(&wording.timeout.as_secs())),
        ("log.filter", tracing_subscriber::EnvFilter::try_new(&config.log.filter).is_ok()),
    ];
    let of = |key: &str| loaded.origins.get(key).cloned().unwrap_or_default();
    if let Some((key, _)) = accepted.iter().find(|(_, accepted)| !accepted) {
        return Err(ConfigError::BadValue {
            origin: of(key),
            key: (*key).to_owned(),
            value: loaded.values.get(key).map(ToString::to_string).unwrap_or_default(),
            accepts: Key::find(key).map_or("", |key| key.accepts).to_owned(),
        });
    }
    let listen = config.gateway.listen;
    if !listen.ip().is_loopback() && config.gateway.allowed_hosts.is_empty() {
        return Err(ConfigError::Exposed { origin: of("gateway.listen"), listen });
    }
    Ok(())
}
