//! The worker image as it is now: its id, and what it says of itself.

use tokio::time::timeout;

use super::DockerSandbox;
use super::error::{is_status, translate, unanswered};
use crate::sandbox::SandboxError;

/// What is known of the worker image.
pub(super) struct Image {
    pub(super) id: String,
    /// What it computes on, by its label [`DEVICES`].
    devices: String,
    /// What it has in `LD_LIBRARY_PATH`.
    pub(super) library_path: Option<String>,
}

/// The label by which an image says what it computes on, such as `cpu,cuda:8`: on the CPU, and a training on eight GPUs.
const DEVICES: &str = "drydock.devices";

impl Image {
    /// GPUs that it computes a job on at most.
    pub(super) fn most_gpus(&self) -> u32 {
        most_gpus(&self.devices)
    }
}

/// `cuda` is for as many as a job has, `cuda:2` for two at most.
fn most_gpus(devices: &str) -> u32 {
    let of = |device: &str| match device.trim().split_once(':') {
        None if device.trim() == "cuda" => u32::MAX,
        Some(("cuda", most)) => most.parse().unwrap_or(0),
        None | Some(_) => 0,
    };
    devices.split(',').map(of).max().unwrap_or(0)
}

impl DockerSandbox {
    /// The image that is configured, as it is now.
    pub(super) async fn image(&self) -> Result<Image, SandboxError> {
        let (limit, action) = (self.settings.timeouts.query, "look up the worker image");
        let name = &self.settings.image;
        let lookup = self.client().await?.inspect_image(name);
        let found = match timeout(limit, lookup).await {
            Err(_) => return Err(SandboxError::TimedOut(limit, action)),
            Ok(Err(error)) if is_status(&error, 404) => return Err(SandboxError::ImageMissing(name.clone())),
            Ok(answer) => answer.map_err(|error| unanswered(translate(error, action, limit)))?,
        };
        let config = found.config.unwrap_or_default();
        let volumes = config.volumes.unwrap_or_default();
        if !volumes.is_empty() {
            return Err(SandboxError::ImageHasVolumes { image: name.clone(), volumes: volumes.join(", ") });
        }
        let environment = config.env.unwrap_or_default();
        Ok(Image {
            id: found.id.ok_or_else(|| SandboxError::ImageMissing(name.clone()))?,
            devices: config.labels.unwrap_or_default().remove(DEVICES).unwrap_or_default(),
            library_path: environment.iter().find_map(|set| Some(set.strip_prefix("LD_LIBRARY_PATH=")?.to_owned())),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_says_how_many_gpus_it_computes_a_job_on() {
        for (devices, most) in
            [("", 0), ("cpu", 0), ("cpu,cuda:1", 1), ("cpu, cuda", u32::MAX), ("cuda:many", 0), ("cuda:0,cuda:8", 8)]
        {
            assert_eq!(most_gpus(devices), most, "{devices}");
        }
    }
}
