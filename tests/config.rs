//! Which setting wins, where it came from, and what is said about one that is wrong.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::{Path, PathBuf};

use drydock::config::{Config, ConfigError, Flag, Loaded, Sources, load};

/// Sources with a file of the given text, in a folder that lives as long as the second value.
fn sources(file: &str, environment: &[(&str, &str)]) -> (Sources, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("drydock.toml");
    std::fs::write(&path, file).unwrap();
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    (Sources { file: Some(path), environment, flags: Vec::new(), folder: PathBuf::from("/srv/here") }, folder)
}

fn loaded(file: &str, environment: &[(&str, &str)]) -> Loaded {
    let (sources, _folder) = sources(file, environment);
    load(&sources).unwrap()
}

/// The message, with the file's folder cut out.
fn message(file: &str, environment: &[(&str, &str)]) -> String {
    let (sources, folder) = sources(file, environment);
    load(&sources).unwrap_err().to_string().replace(&format!("{}/", folder.path().display()), "")
}

#[test]
fn without_any_source_the_defaults_are_in_force() {
    let loaded = load(&Sources { folder: "/srv/here".into(), ..Sources::default() }).unwrap();
    let expected = Config { data_dirs: vec!["/srv/here".into()], ..Config::default() };
    assert_eq!(loaded.config, expected);
    assert!(loaded.origins.values().all(|origin| origin == "default"), "{:?}", loaded.origins);
}

#[test]
fn a_flag_wins_over_the_environment_which_wins_over_the_file() {
    let file = "[gateway]\nlisten = '127.0.0.1:1'\nmax_body = '1 MiB'\n[limits]\npids = 7\n";
    let environment = [("DRYDOCK_GATEWAY__LISTEN", "127.0.0.1:2"), ("DRYDOCK_LIMITS__PIDS", "8")];
    let (mut sources, folder) = sources(file, &environment);
    sources.flags.push(Flag { flag: "--listen", key: "gateway.listen", value: "127.0.0.1:3".into() });
    let loaded = load(&sources).unwrap();
    assert_eq!(loaded.config.gateway.listen.port(), 3);
    assert_eq!(loaded.config.limits.pids, 8);
    assert_eq!(loaded.config.gateway.max_body.0, 1 << 20);
    assert_eq!(loaded.origins["gateway.listen"], "flag --listen");
    assert_eq!(loaded.origins["limits.pids"], "environment variable DRYDOCK_LIMITS__PIDS");
    assert_eq!(loaded.origins["gateway.max_body"], folder.path().join("drydock.toml").display().to_string());
    assert_eq!(loaded.origins["gateway.max_upload"], "default");
}

#[test]
fn relative_paths_start_where_they_were_written() {
    let environment = [("DRYDOCK_DATA_DIRS", "['data', '/srv', '~/sets']"), ("HOME", "/people/kim")];
    let (sources, folder) = sources("state_dir = 'state'\n[hub]\ntoken_file = '../token'\n", &environment);
    let config = load(&sources).unwrap().config;
    assert_eq!(config.state_dir, folder.path().join("state"));
    assert_eq!(config.hub.token_file, Some(folder.path().join("../token")));
    assert_eq!(
        config.data_dirs,
        [Path::new("/srv/here/data"), Path::new("/srv"), Path::new("/people/kim/sets")].map(Path::to_owned)
    );
}

#[test]
fn numbers_in_variables_keep_their_precision() {
    assert_eq!(loaded("", &[("DRYDOCK_CAPACITY__CPUS", "1.3")]).config.capacity.cpus, Some(1.3));
    assert_eq!(loaded("", &[("DRYDOCK_CAPACITY__CPUS", "2")]).config.capacity.cpus, Some(2.0));
    assert_eq!(loaded("", &[("DRYDOCK_CAPACITY__MEMORY", "1000000001")]).config.capacity.memory.unwrap().0, 1000000001);
    assert!(loaded("", &[("DRYDOCK_HUB__OFFLINE", "true")]).config.hub.offline);
}

#[test]
fn every_unknown_key_is_named_with_the_nearest_known_one() {
    assert_eq!(
        message("pids = 3\n[gateway]\nlistn = 'x'\n", &[("DRYDOCK_LIMITS__TIMEE", "1h"), ("DRYDOCK_ZZ__Y", "1")]),
        "drydock.toml: unknown key `gateway.listn`; did you mean `gateway.listen`?\n\
         drydock.toml: unknown key `pids`; did you mean `limits.pids`?\n\
         environment variable DRYDOCK_LIMITS__TIMEE: unknown key `limits.timee`; did you mean `limits.time`?\n\
         environment variable DRYDOCK_ZZ__Y: unknown key `zz.y`; `drydock config` lists the keys there are"
    );
}

#[test]
fn variables_that_mean_something_else_are_left_alone() {
    let environment = [
        ("DRYDOCK_URL", "http://127.0.0.1:1"),
        ("DRYDOCK_CONFIG", "/x"),
        ("DRYDOCK_PORT", "tcp://10.0.0.1:7717"),
        ("DRYDOCK_SERVICE_HOST", "10.0.0.1"),
        ("LISTEN", "x"),
    ];
    assert!(loaded("", &environment).origins.values().all(|origin| origin == "default"));
    assert!(message("", &[("DRYDOCK_STATE_DRI", "/x")]).contains("did you mean `state_dir`?"));
}

#[test]
fn a_value_that_does_not_fit_is_shown_with_what_is_accepted() {
    for (file, expected) in [
        (
            "[gateway]\nlisten = 'localhost'\n",
            r#"gateway.listen = "localhost": not accepted; write an address and port such as 127.0.0.1:7717"#,
        ),
        ("data_dirs = '/srv'\n", r#"data_dirs = "/srv": not accepted; write a list of folders such as ["/srv/data"]"#),
        (
            "data_dirs = ['/srv', 3]\n",
            r#"data_dirs = ["/srv",3]: not accepted; write a list of folders such as ["/srv/data"]"#,
        ),
        (
            "[wording]\nendpoint = 'box:1'\nmodel = 'm'\n",
            r#"wording.endpoint = "box:1": not accepted; write an address such as http://127.0.0.1:8000/v1"#,
        ),
        ("[wording]\ntimeout = '1h'\n", r#"wording.timeout = "1h": not accepted; write a time from "1s" to "5m""#),
        ("gateway = 3\n", "gateway = 3: not accepted; write a section of its own, such as [gateway]"),
        (
            "[limits]\ntime = 'soon'\n",
            r#"limits.time = "soon": not accepted; write a time such as "90s", "30m" or "24h""#,
        ),
        (
            "[limits]\ndisk = 'much'\n",
            r#"limits.disk = "much": not accepted; write a size such as "512 MiB" or "10 GiB""#,
        ),
        ("[limits]\nmax_attempts = 99\n", "limits.max_attempts = 99: not accepted; write a whole number from 1 to 10"),
        ("[limits]\npids = -1\n", "limits.pids = -1: not accepted; write a whole number from 1 up"),
        ("[sandbox]\nuid = 0\n", "sandbox.uid = 0: not accepted; write a numeric id above 0, such as 65532"),
        (
            "[sandbox]\nuids = '0-99'\n",
            r#"sandbox.uids = "0-99": not accepted; write a range of users above 0 such as "70000-70999""#,
        ),
        (
            "[sandbox]\noutput_cap = 'none'\n",
            r#"sandbox.output_cap = "none": not accepted; write "auto", "loop_mount" or "watched""#,
        ),
        (
            "[log]\nfilter = 'a=b=c'\n",
            r#"log.filter = "a=b=c": not accepted; write a filter in the form of RUST_LOG such as "info""#,
        ),
    ] {
        assert_eq!(message(file, &[]), format!("drydock.toml: {expected}"));
    }
    assert_eq!(
        message("", &[("DRYDOCK_CAPACITY__CPUS", "0")]),
        "environment variable DRYDOCK_CAPACITY__CPUS: capacity.cpus = 0: not accepted; write a number of CPUs such as 1.5"
    );
}

#[test]
fn an_endpoint_of_a_language_model_needs_the_models_name() {
    assert_eq!(
        message("[wording]\nendpoint = 'http://127.0.0.1:1/v1'\n", &[]),
        "default: wording.model = \"\": not accepted; write the name of a model at wording.endpoint"
    );
    assert_eq!(loaded("[wording]\nendpoint = ''\n", &[]).config.wording.endpoint(), None, "empty is off");
}

#[test]
fn a_file_that_is_missing_or_no_toml_is_named() {
    let missing = Sources { file: Some("/nowhere/x.toml".into()), ..Sources::default() };
    assert!(matches!(load(&missing), Err(ConfigError::Unreadable { .. })));
    let text = message("[gateway\n", &[]);
    assert!(text.starts_with("drydock.toml: not valid TOML: ") && text.contains("line 1"), "{text}");
}

#[test]
fn a_gateway_that_others_can_reach_must_name_its_hosts_and_still_warns() {
    let open = "[gateway]\nlisten = '0.0.0.0:7717'\n";
    assert_eq!(
        message(open, &[]),
        "drydock.toml: gateway.listen = 0.0.0.0:7717: other machines could reach the gateway, which has no \
         authentication yet; listen on 127.0.0.1, or name the hosts it may be reached as in gateway.allowed_hosts, \
         such as [\"gpu-box.lan:7717\"]"
    );
    let config = loaded(&format!("{open}allowed_hosts = ['gpu-box.lan:7717']\n"), &[]).config;
    assert!(config.warnings()[0].contains("no authentication yet"), "{:?}", config.warnings());
    assert!(Config::default().warnings().is_empty());
}

#[test]
fn the_readme_lists_every_key_with_its_default_and_purpose() {
    let readme = include_str!("../README.md");
    let defaults = load(&Sources::default()).unwrap();
    for key in drydock::config::KEYS {
        let shown = match (key.path, defaults.values.get(key.path)) {
            // These depend on who runs it, and where.
            ("state_dir", _) => "`~/.local/share/drydock`".into(),
            ("data_dirs", _) => "the working folder".into(),
            (_, Some(value)) => format!("`{value}`"),
            (_, None) => String::new(),
        };
        let row = format!("| `{}` | {shown} | {} |", key.path, key.about);
        assert!(readme.contains(&row), "README.md lacks the row\n{row}");
    }
}

#[test]
fn the_readme_lists_every_exit_code_of_the_help() {
    let readme = include_str!("../README.md");
    let help = include_str!("cli/snapshots/cli__the_help_names_every_command_and_exit_code.snap");
    let codes = help.split("Exit codes:\n").nth(1).unwrap().lines().filter(|line| line.starts_with("  "));
    let rows: Vec<_> = codes.map(|line| line.trim().split_once(' ').unwrap()).collect();
    assert_eq!(rows.len(), 7);
    for (code, meaning) in rows {
        let row = format!("| {code} | {} |", meaning.trim());
        assert!(readme.contains(&row), "README.md lacks the row\n{row}");
    }
}
