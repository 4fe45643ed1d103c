//! Room on the host's disks: a full one holds up the line, with a reason, before it breaks jobs.
//!
//! Two places are looked at: the state folder, and the folder of the container engine where it lies on this host. What
//! runs goes on; its output is capped by a file system of its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::blobs::size;
use crate::config::Config;
use crate::engine::EngineWatch;

/// By so much a disk has to become emptier for the line to be looked at again.
const NOTABLE_BYTES: u64 = 16 << 20;

/// A disk that has too little room.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} free on the disk of {what} ({}), {} are kept free; free disk space, for example with `drydock gc`, or lower {key}",
    size(*.free_bytes), .path.display(), size(*.least_bytes)
)]
pub struct Shortage {
    /// Such as `the state folder`.
    pub what: &'static str,
    pub path: PathBuf,
    pub free_bytes: u64,
    pub least_bytes: u64,
    /// The key that says how much is kept free.
    pub key: &'static str,
}

/// How the disks stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// Bytes that are free on the state folder's disk.
    pub free_bytes: u64,
    /// Why no job starts, if none does.
    pub shortage: Option<Shortage>,
}

impl Room {
    /// Whether a job can start that may write so many bytes.
    #[must_use]
    pub fn takes(&self, bytes: u64) -> bool {
        self.shortage.is_none() && bytes <= self.free_bytes
    }
}

/// The newest look at the disks. Cloning shares it.
#[derive(Debug, Clone)]
pub struct DiskWatch(watch::Receiver<Room>);

/// Looks at the disks and tells the watchers. Cloning shares it.
#[derive(Debug, Clone)]
pub struct DiskProbe {
    config: Arc<Config>,
    engine: EngineWatch,
    news: watch::Sender<Room>,
}

/// A place that was looked at.
struct Place {
    what: &'static str,
    path: PathBuf,
    free_bytes: u64,
    least_bytes: u64,
    key: &'static str,
}

impl DiskProbe {
    /// A probe whose watchers see an empty disk until [`DiskProbe::probe_once`] has looked.
    #[must_use]
    pub fn new(config: Arc<Config>, engine: EngineWatch) -> (Self, DiskWatch) {
        let (news, watch) = watch::channel(Room { free_bytes: u64::MAX, shortage: None });
        (Self { config, engine, news }, DiskWatch(watch))
    }

    /// Looks once.
    pub fn probe_once(&self) {
        let state = &self.config.state_dir;
        let mut places = Vec::new();
        let free_bytes = free(state).unwrap_or(u64::MAX);
        places.push(Place {
            what: "the state folder",
            path: state.clone(),
            free_bytes,
            least_bytes: self.config.disk.min_free_state.0,
            key: "disk.min_free_state",
        });
        // An engine on another host, or in a container of its own, has its folder elsewhere.
        let engine = self.engine.now().ok().and_then(|info| info.folder).filter(|folder| folder.is_dir());
        if let Some((path, free_bytes)) = engine.and_then(|path| free(&path).map(|free| (path, free))) {
            let least_bytes = self.config.disk.min_free_engine.0;
            let (what, key) = ("the container engine", "disk.min_free_engine");
            places.push(Place { what, path, free_bytes, least_bytes, key });
        }
        let was_short = self.news.borrow().shortage.is_some();
        self.publish(Room { free_bytes, shortage: judge(places, was_short) });
    }

    /// Tells the watchers how the disks stand; they hear of it only when it matters to the line.
    pub fn publish(&self, room: Room) {
        self.news.send_if_modified(|known| {
            let grew = room.free_bytes >= known.free_bytes.saturating_add(NOTABLE_BYTES);
            let differs = grew || known.shortage.is_some() != room.shortage.is_some();
            match (&known.shortage, &room.shortage) {
                (None, Some(shortage)) => tracing::warn!("no job starts: {shortage}"),
                (Some(_), None) => tracing::info!("there is room again; jobs start"),
                _ => {}
            }
            // What is not notable yet adds up.
            if differs || room.free_bytes < known.free_bytes {
                *known = room;
            }
            differs
        });
    }

    /// Looks again and again, until shutdown.
    pub async fn run(self, every: Duration, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(every) => self.probe_once(),
                () = shutdown.cancelled() => return,
            }
        }
    }
}

impl DiskWatch {
    /// The newest look.
    #[must_use]
    pub fn now(&self) -> Room {
        self.0.borrow().clone()
    }

    /// Returns when jobs may start that could not before, or the other way round.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// The first place with too little room. Once the line is held up, a tenth more is asked for, so that it does not go on
/// and stop again with every file.
fn judge(places: Vec<Place>, was_short: bool) -> Option<Shortage> {
    let enough = |place: &Place| {
        let margin = if was_short { place.least_bytes / 10 } else { 0 };
        place.free_bytes >= place.least_bytes.saturating_add(margin)
    };
    places.into_iter().find(|place| !enough(place)).map(|Place { what, path, free_bytes, least_bytes, key }| Shortage {
        what,
        path,
        free_bytes,
        least_bytes,
        key,
    })
}

/// Bytes that are free for us on the folder's disk, if the system says so.
pub(crate) fn free(folder: &Path) -> Option<u64> {
    rustix::fs::statvfs(folder).ok().map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(test)]
mod tests {
    use bytesize::ByteSize;

    use super::*;
    use crate::config::DiskConfig;
    use crate::sandbox::{EngineInfo, Isolation};

    fn place(free_bytes: u64) -> Place {
        Place { what: "the state folder", path: "/s".into(), free_bytes, least_bytes: 1000, key: "disk.min_free_state" }
    }

    #[test]
    fn a_line_that_was_held_up_goes_on_only_with_room_to_spare() {
        let short = |free, was_short| judge(vec![place(free)], was_short).is_some();
        assert!(!short(1000, false) && short(999, false));
        assert!(short(1099, true) && !short(1100, true));
    }

    #[test]
    fn the_engines_own_disk_counts_where_it_is_on_this_host() {
        let folder = tempfile::tempdir().unwrap();
        let key = |engine: &Path| {
            let disk = DiskConfig { min_free_state: ByteSize(0), min_free_engine: ByteSize(u64::MAX / 2) };
            let config = Config { state_dir: folder.path().to_owned(), disk, ..Config::default() };
            let info = EngineInfo {
                engine: "docker 1".into(),
                incarnation: "1".into(),
                cpus: 1,
                memory_bytes: 1,
                folder: Some(engine.to_owned()),
                image: Ok("sha256:1".into()),
                runtime: Ok("runc".into()),
                isolation: Isolation::default(),
                gpus: Default::default(),
            };
            let (probe, watch) = DiskProbe::new(Arc::new(config), EngineWatch::still(Ok(info)));
            probe.probe_once();
            watch.now().shortage.map(|shortage| shortage.key)
        };
        assert_eq!(key(folder.path()), Some("disk.min_free_engine"));
        assert_eq!(key(Path::new("/nowhere/at/all")), None);
    }

    #[test]
    fn a_shortage_says_where_how_much_and_what_to_do() {
        let shortage = judge(vec![place(2000), place(512)], false).unwrap();
        assert_eq!(
            shortage.to_string(),
            "512 B free on the disk of the state folder (/s), 1000 B are kept free; free disk space, for example with \
             `drydock gc`, or lower disk.min_free_state"
        );
    }
}
