//! The GPUs that a container was given, and ways to another's.

use std::fs::{self, OpenOptions};

use crate::output::make_node;
use crate::{inspect, outcome, tell};

/// Where a container finds the driver's libraries, if they were put there for it.
const LIBRARIES: &str = "/usr/local/nvidia/lib64";

/// Tells what is there, and what comes of using these files as devices; each path is `PATH` or `PATH=MAJOR:MINOR`, and
/// with numbers a file of one's own for the same device is made as well.
pub(crate) fn look_for_gpus(paths: &[&str]) {
    tell("devices", &inspect::names("/dev"));
    tell("environment", &inspect::environment());
    tell("libraries", &inspect::names(LIBRARIES));
    let content = fs::read_to_string(format!("{LIBRARIES}/libcuda.so.1"));
    tell("driver", &content.unwrap_or_else(|error| crate::error_name(&error)));
    let written = OpenOptions::new().write(true).open(format!("{LIBRARIES}/libcuda.so.1"));
    tell("write the driver", &outcome(written));
    for path in paths {
        let (path, numbers) = path.split_once('=').map_or((*path, None), |(path, numbers)| (path, Some(numbers)));
        tell(&format!("open {path}"), &outcome(OpenOptions::new().read(true).write(true).open(path)));
        if let Some((major, minor)) = numbers.and_then(|numbers| numbers.split_once(':')) {
            let device = libc::makedev(major.parse().unwrap_or(0), minor.parse().unwrap_or(0));
            tell(&format!("make {path}"), &outcome(make_node("/tmp/made", libc::S_IFCHR, device)));
        }
    }
    tell("end", "reached");
}
