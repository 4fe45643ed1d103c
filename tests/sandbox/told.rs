//! What one run of the probe has told of a container's inside; every test looks at a part of it.

use std::collections::BTreeMap;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use rustix::fs::{IFlags, ioctl_getflags};
use tokio::sync::OnceCell;

use crate::stage::Stage;

pub(crate) struct Told {
    facts: BTreeMap<String, String>,
    /// Whether the host could make the events file append-only: root can, on most file systems.
    pub(crate) append_only: bool,
    pub(crate) fsize: u64,
    pub(crate) user: (u32, u32),
    /// Who a file that the probe made belongs to, on the host.
    pub(crate) made_by: u32,
}

impl Told {
    pub(crate) async fn from_inside() -> &'static Self {
        static TOLD: OnceCell<Told> = OnceCell::const_new();
        TOLD.get_or_init(async || Self::tell(&Stage::new()).await).await
    }

    /// Has the probe try everything on this stage.
    pub(crate) async fn tell(stage: &Stage) -> Self {
        let name = format!("drydock-test-sb-{:032x}", rand::random::<u128>());
        let _listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let act = stage.act(&["inspect", &name]);
        let flags = ioctl_getflags(std::fs::File::open(act.dir.events_path()).unwrap());
        let exit = stage.play(&act).await;
        let facts = act.told();
        assert_eq!((exit.code, facts.get("end").map(String::as_str)), (0, Some("reached")), "{facts:?}");
        Self {
            facts,
            append_only: flags.is_ok_and(|flags| flags.contains(IFlags::APPEND)),
            fsize: act.launch.limits.disk_bytes,
            user: act.launch.user,
            made_by: act.dir.output_path().join("file").metadata().unwrap().uid(),
        }
    }

    pub(crate) fn get(&self, fact: &str) -> &str {
        self.facts.get(fact).unwrap_or_else(|| panic!("the probe does not tell `{fact}`"))
    }

    /// The facts whose names begin so, by the rest of their names.
    pub(crate) fn all(&self, beginning: &str) -> BTreeMap<&str, &str> {
        let rest = |(fact, value)| Some((str::strip_prefix(fact, beginning)?, value));
        self.facts.iter().filter_map(|(fact, value)| rest((fact.as_str(), value.as_str()))).collect()
    }
}
