//! GPUs in real containers, without a real one: device files that are another device's, a driver's files that tests write,
//! and a hook in the place of NVIDIA's. What only a real GPU can show (that CUDA computes in there) is not shown here.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};

use drydock::sandbox::attempt_dir::OutputCap;
use drydock::sandbox::docker::{DockerSettings, GpuSettings};
use drydock::sandbox::gpus::{Injector, InjectorChoice, KnownGpus};
use drydock::sandbox::{Launch, Sandbox, SandboxError};
use drydock_gpu::inventory::{Gpu, Inventory};
use serde_json::json;

use crate::image::probe;
use crate::own_engine::{Engine, is_at_least};
use crate::stage::{Act, Stage, skipped};

const VERSION: &str = "580.2";
/// What every container has.
const USUAL: &str = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero";

/// A host with two GPUs: files below a folder of the test's own. The device files are those of devices that no container
/// may use unless it is let, and that nothing comes of opening.
pub(crate) struct Rack {
    pub(crate) root: tempfile::TempDir,
    /// Major and minor numbers.
    devices: [(u32, u32); 2],
    inventory: Arc<Mutex<Inventory>>,
}

impl Rack {
    /// `None` where it cannot be put up.
    fn new() -> Option<Self> {
        Self::of(|index| format!("GPU-{index}"))
    }

    /// The same with GPUs that are called so.
    pub(crate) fn of(uuid: impl Fn(u32) -> String) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skipped("only root makes device files");
            return None;
        }
        let known = std::fs::read_to_string("/proc/misc").unwrap_or_default();
        let minor = |name: &str| {
            known.lines().find_map(|line| line.trim().strip_suffix(name)?.strip_suffix(' ')?.parse::<u32>().ok())
        };
        let (Some(given), Some(other)) = (minor("fuse"), minor("loop-control")) else {
            skipped("the kernel has no two devices that stand for GPUs: fuse and loop-control");
            return None;
        };
        let root = tempfile::tempdir().unwrap();
        let gpu = |index| Gpu { index, uuid: uuid(index), ..Gpu::default() };
        let inventory = Inventory { gpus: vec![gpu(0), gpu(1)], ..Inventory::default() };
        let rack = Self { root, devices: [(10, given), (10, other)], inventory: Arc::new(Mutex::new(inventory)) };
        rack.put(
            "proc/driver/nvidia/version",
            &format!("NVRM version: NVIDIA UNIX x86_64 Kernel Module  {VERSION}  x\n"),
        );
        for index in 0..2 {
            let told = format!("GPU UUID: \t {}\nDevice Minor: \t {index}\n", uuid(index));
            rack.put(&format!("proc/driver/nvidia/gpus/0000:0{index}:00.0/information"), &told);
            rack.make(&format!("dev/nvidia{index}"), rack.devices[index as usize]);
        }
        for shared in ["nvidiactl", "nvidia-uvm"] {
            rack.make(&format!("dev/{shared}"), (1, 3));
        }
        rack.load_driver(VERSION);
        Some(rack)
    }

    pub(crate) fn load_driver(&self, version: &str) {
        self.put(
            "proc/driver/nvidia/version",
            &format!("NVRM version: NVIDIA UNIX x86_64 Kernel Module  {version}  x\n"),
        );
        let driver = format!("usr/lib64/libcuda.so.{version}");
        self.put(&driver, "the driver");
        // Only that it is mounted read-only can keep a job from writing there.
        std::fs::set_permissions(self.root.path().join(driver), std::fs::Permissions::from_mode(0o666)).unwrap();
    }

    pub(crate) fn put(&self, path: &str, text: &str) {
        let path = self.root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn make(&self, path: &str, device: (u32, u32)) {
        let path = self.root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        make_device(&path, device);
    }

    /// What has the stage's containers take their GPUs from this host.
    fn serve(&self, choice: InjectorChoice, settings: &mut DockerSettings) {
        let inventory = Arc::clone(&self.inventory);
        settings.image = probe_with_gpus().to_owned();
        settings.gpus = GpuSettings {
            choice,
            known: KnownGpus::asked(move || inventory.lock().unwrap().clone()),
            root: self.root.path().to_owned(),
            ..GpuSettings::default()
        };
    }
}

fn make_device(path: &Path, (major, minor): (u32, u32)) {
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    let device = rustix::fs::makedev(major, minor);
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::CharacterDevice, mode, device).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).unwrap();
}

/// The probe as an image that says that it computes on GPUs, and asks for all of them as NVIDIA's own images do.
pub(crate) fn probe_with_gpus() -> &'static str {
    static BUILT: OnceLock<String> = OnceLock::new();
    BUILT.get_or_init(|| {
        let context = tempfile::tempdir().unwrap();
        let dockerfile =
            format!("FROM {}\nLABEL drydock.devices=\"cpu,cuda\"\nENV NVIDIA_VISIBLE_DEVICES=all\n", probe());
        std::fs::write(context.path().join("Dockerfile"), dockerfile).unwrap();
        let name = format!("{}-cuda", probe());
        let mut docker = Command::new("docker");
        docker.env("DOCKER_BUILDKIT", "0").args(["build", "--quiet", "--tag", &name]).arg(context.path());
        assert!(docker.output().unwrap().status.success());
        name
    })
}

/// An attempt that has these GPUs.
fn with_gpus(mut act: Act, gpus: &[&str]) -> Act {
    act.launch.gpus = gpus.iter().map(|gpu| (*gpu).to_owned()).collect();
    act
}

/// What the probe saw in its `/dev` besides what every container has.
fn devices(act: &Act) -> Vec<String> {
    let usual: BTreeSet<_> = USUAL.split(' ').collect();
    act.told()["devices"].split(' ').filter(|name| !usual.contains(name)).map(str::to_owned).collect()
}

fn source(launch: &Launch, target: &str) -> PathBuf {
    launch.mounts.iter().find(|mount| mount.target == target).unwrap().source.clone()
}

#[tokio::test]
async fn a_job_has_the_gpu_that_it_was_given_and_cannot_use_another() {
    let Some(rack) = Rack::new() else { return };
    let stage = Stage::with(OutputCap::Auto, |settings| rack.serve(InjectorChoice::Devices, settings));
    let [(major, own), (_, other)] = rack.devices;
    let act = stage.act(&[
        "look-for-gpus",
        "/dev/nvidia0",
        "/dev/nvidia1",
        "/in/model/same",
        &format!("/in/model/other={major}:{other}"),
    ]);
    let act = with_gpus(act, &["GPU-0"]);
    // Should a device file come into a container's sight all the same, the kernel still knows whose it is.
    make_device(&source(&act.launch, "/in/model").join("same"), (major, own));
    make_device(&source(&act.launch, "/in/model").join("other"), (major, other));
    assert_eq!(stage.play(&act).await.code, 0);
    let told = act.told();
    assert_eq!(devices(&act), ["nvidia-uvm", "nvidia0", "nvidiactl"]);
    assert_eq!(told["open /dev/nvidia0"], "ok");
    assert_eq!(told["open /dev/nvidia1"], "ENOENT");
    assert_eq!(told["open /in/model/same"], "ok", "it is the control group that tells them apart");
    assert_eq!(told["open /in/model/other"], "EPERM");
    assert_eq!(told["make /in/model/other"], "EPERM");
    assert_eq!(told["libraries"], format!("libcuda.so.1 libcuda.so.{VERSION}"));
    assert_eq!(told["driver"], "the driver");
    assert_eq!(told["write the driver"], "EROFS");
    assert!(told["environment"].contains("LD_LIBRARY_PATH=/usr/local/nvidia/lib64"), "{}", told["environment"]);
    assert!(told["environment"].contains("NVIDIA_VISIBLE_DEVICES=void"), "the image's own word does not count");
}

#[tokio::test]
async fn several_gpus_of_a_job_may_speak_to_each_other_by_tcp_and_nothing_else() {
    let Some(rack) = Rack::new() else { return };
    let stage = Stage::with(OutputCap::Auto, |settings| rack.serve(InjectorChoice::Devices, settings));
    let families = async |gpus: &[&str]| {
        let act = with_gpus(stage.act(&["inspect", "nobody"]), gpus);
        assert_eq!(stage.play(&act).await.code, 0);
        let told = act.told();
        assert_eq!(told["socket inet"], "EPERM", "the probe asks for datagrams");
        told["families of sockets"].clone()
    };
    assert_eq!(families(&["GPU-0"]).await, "1", "1 is AF_UNIX");
    assert_eq!(families(&["GPU-0", "GPU-1"]).await, "1 2 16", "2 is AF_INET, and 16 AF_NETLINK");
}

#[tokio::test]
async fn what_works_is_found_by_trying_and_why_the_rest_does_not_is_said() {
    let Some(rack) = Rack::new() else { return };
    let stage = Stage::with(OutputCap::Auto, |settings| rack.serve(InjectorChoice::Auto, settings));
    assert!(stage.sandbox.probe().await.unwrap().gpus.injection.unwrap_err().contains("being tried"));
    assert!(stage.sandbox.try_injectors().await);
    let found = stage.sandbox.probe().await.unwrap().gpus;
    assert_eq!((found.units, found.most_gpus), (2, u32::MAX));
    // This host's engine may have NVIDIA's hook, or know CDI: neither knows of these GPUs.
    assert_eq!(found.injection, Ok(Injector::Devices), "{found:?}");
    assert_eq!(found.refused.iter().map(|one| one.injector).collect::<Vec<_>>(), [Injector::Cdi, Injector::Nvidia]);
    assert!(!stage.sandbox.try_injectors().await, "once is enough");
    assert_eq!(stage.sandbox.list().await.unwrap(), [], "what was tried with is gone");

    // A GPU less, and it is found out anew.
    rack.inventory.lock().unwrap().gpus.pop();
    assert!(stage.sandbox.probe().await.unwrap().gpus.injection.is_err());
    assert!(stage.sandbox.try_injectors().await);
    let lost = with_gpus(stage.act(&["exit", "0"]), &["GPU-1"]);
    let error = stage.sandbox.create(&lost.launch).await.unwrap_err();
    assert!(error.to_string().contains("GPU-1 is not on this host any more"), "{error}");
    assert_eq!(stage.sandbox.probe().await.unwrap().gpus.injection, Ok(Injector::Devices), "which is no fault of its");
}

#[tokio::test]
async fn where_no_injector_works_no_container_with_gpus_is_made_and_the_reasons_are_said() {
    let Some(rack) = Rack::new() else { return };
    std::fs::remove_file(rack.root.path().join("dev/nvidia-uvm")).unwrap();
    let stage = Stage::with(OutputCap::Auto, |settings| rack.serve(InjectorChoice::Auto, settings));
    let act = with_gpus(stage.act(&["exit", "0"]), &["GPU-0"]);
    let error = stage.sandbox.create(&act.launch).await.unwrap_err();
    let SandboxError::NoInjector(why) = &error else { panic!("{error}") };
    for word in ["cdi:", "nvidia:", "devices: /dev/nvidia-uvm is not there"] {
        assert!(why.contains(word), "{word}: {why}");
    }
    assert_eq!(stage.sandbox.list().await.unwrap(), []);
    // The CPU serves all the same.
    assert_eq!(stage.play(&stage.act(&["exit", "0"])).await.code, 0);
}

#[tokio::test]
async fn a_container_with_another_gpu_than_its_own_is_ended_before_anybody_relies_on_it() {
    let Some(rack) = Rack::new() else { return };
    let stage = Stage::with(OutputCap::Auto, |settings| rack.serve(InjectorChoice::Devices, settings));
    let act = with_gpus(stage.act(&["wait"]), &["GPU-0"]);
    stage.sandbox.create(&act.launch).await.unwrap();
    // Between creation and start the driver was loaded anew, and counts its GPUs otherwise.
    rack.put("proc/driver/nvidia/gpus/0000:00:00.0/information", "GPU UUID: \t GPU-0\nDevice Minor: \t 1\n");
    let error = stage.sandbox.start(&act.launch.name).await.unwrap_err();
    let SandboxError::NoInjection { injector: Injector::Devices, message } = &error else { panic!("{error}") };
    assert_eq!(message, "a container that was given /dev/nvidia1 has /dev/nvidia0");
    assert_eq!(stage.status(&act).await.unwrap(), None);
}

#[tokio::test]
async fn a_device_file_that_is_gone_at_the_start_is_the_injectors_fault_and_not_the_jobs() {
    let Some(rack) = Rack::new() else { return };
    let stage = Stage::with(OutputCap::Auto, |settings| rack.serve(InjectorChoice::Devices, settings));
    let act = with_gpus(stage.act(&["exit", "0"]), &["GPU-0"]);
    stage.sandbox.create(&act.launch).await.unwrap();
    std::fs::remove_file(rack.root.path().join("dev/nvidia0")).unwrap();
    let error = stage.sandbox.start(&act.launch.name).await.unwrap_err();
    assert!(matches!(error, SandboxError::NoInjection { injector: Injector::Devices, .. }), "{error}");
    let why = stage.sandbox.probe().await.unwrap().gpus.injection.unwrap_err();
    assert!(why.contains("devices: "), "{why}");
    // Whoever takes the attempt up later sees a container that can be started again, not one that has failed.
    assert_eq!(stage.status(&act).await.unwrap(), Some(drydock::sandbox::Status::Created { error: None }));
}

/// A program in the place of NVIDIA's hook: it notes what it is asked for, and does as the file `deeds` beside it says,
/// which holds an exit code and the device files to make (`nvidia0 10 229`).
const HOOK: &str = r#"#!/bin/sh
folder=$(dirname "$0")
state=$(cat)
field() { printf '%s' "$state" | sed -n "s/.*\"$1\":\"\{0,1\}\([^,\"}]*\).*/\1/p"; }
config=$(field bundle)/config.json
grep -o '"NVIDIA_[A-Z_]*=[^"]*"' "$config" | tr -d '"' | sort | uniq > "$folder/asked"
rootfs=$(sed -n 's/.*"root":{"path":"\([^"]*\)".*/\1/p' "$config")
{ read -r code; while read -r name major minor; do
  nsenter --target "$(field pid)" --mount mknod -m 666 "$rootfs/dev/$name" c "$major" "$minor"
done; } < "$folder/deeds"
[ "$code" = 0 ] || { echo "nvidia-container-cli: initialization error: driver not loaded" >&2; exit "$code"; }
"#;

fn program(folder: &Path, name: &str, text: &str) {
    std::fs::write(folder.join(name), text).unwrap();
    std::fs::set_permissions(folder.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn nvidias_hook_is_asked_for_one_gpu_by_uuid_and_its_failures_are_not_the_jobs() {
    let Some(rack) = Rack::new() else { return };
    let programs = tempfile::tempdir().unwrap();
    program(programs.path(), "nvidia-container-runtime-hook", HOOK);
    let deeds = |text: &str| std::fs::write(programs.path().join("deeds"), text).unwrap();
    deeds("1\n");
    let Some(engine) = Engine::start_with(&[], Some(programs.path()), probe_with_gpus) else { return };
    let stage = |choice| {
        Stage::within(engine.shared(), OutputCap::Auto, |settings| {
            rack.serve(choice, settings);
            settings.host = Some(engine.host());
        })
    };

    // It fails: the next one is taken, and nothing is left of the trial.
    let auto = stage(InjectorChoice::Auto);
    assert!(auto.sandbox.try_injectors().await);
    let found = auto.sandbox.probe().await.unwrap().gpus;
    assert_eq!(found.injection, Ok(Injector::Devices));
    assert!(found.refused[1].why.contains("driver not loaded"), "{found:?}");
    assert_eq!(auto.sandbox.list().await.unwrap(), []);

    // It does as it is asked.
    let stage = stage(InjectorChoice::Nvidia);
    let [(major, own), (_, other)] = rack.devices;
    deeds(&format!("0\nnvidia0 {major} {own}\nnvidia1 {major} {other}\n"));
    assert!(stage.sandbox.try_injectors().await);
    assert_eq!(stage.sandbox.probe().await.unwrap().gpus.injection, Ok(Injector::Nvidia));
    deeds(&format!("0\nnvidia0 {major} {own}\n"));
    let act = with_gpus(stage.act(&["look-for-gpus"]), &["GPU-0"]);
    assert_eq!(stage.play(&act).await.code, 0);
    assert_eq!(devices(&act), ["nvidia0"]);
    let asked = std::fs::read_to_string(programs.path().join("asked")).unwrap();
    assert_eq!(asked, "NVIDIA_DRIVER_CAPABILITIES=compute,utility\nNVIDIA_VISIBLE_DEVICES=GPU-0\n");

    // It gives more than it was asked for.
    deeds(&format!("0\nnvidia0 {major} {own}\nnvidia1 {major} {other}\n"));
    let act = with_gpus(stage.act(&["wait"]), &["GPU-0"]);
    stage.sandbox.create(&act.launch).await.unwrap();
    let error = stage.sandbox.start(&act.launch.name).await.unwrap_err();
    assert!(error.to_string().contains("given /dev/nvidia0 has /dev/nvidia0, /dev/nvidia1"), "{error}");
    assert_eq!(stage.status(&act).await.unwrap(), None);

    // And fails when it has worked before. That is remembered, until something changes.
    assert!(stage.sandbox.probe().await.unwrap().gpus.injection.unwrap_err().contains("nvidia: "));
    let refused = with_gpus(stage.act(&["exit", "0"]), &["GPU-0"]);
    let error = stage.sandbox.create(&refused.launch).await.unwrap_err();
    assert!(matches!(error, SandboxError::NoInjector(_)), "{error}");
    std::fs::remove_file(programs.path().join("asked")).unwrap();
    assert_eq!(stage.play(&stage.act(&["exit", "0"])).await.code, 0);
    assert!(!programs.path().join("asked").exists(), "a job on the CPU has nothing to do with it");
}

#[tokio::test]
async fn by_cdi_the_engine_gives_what_its_file_says_and_a_file_that_is_out_of_date_is_found_out() {
    if !is_at_least(28, 2) {
        return skipped("engines list CDI devices from Docker 28.2 on, and this host's is older");
    }
    let Some(rack) = Rack::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    // Numbered by place, as NVIDIA's toolkit does by default.
    let write = |minors: [usize; 2]| {
        let node = |minor: usize| {
            let (major, of) = rack.devices[minor];
            json!({"path": format!("/dev/nvidia{minor}"), "type": "c", "major": major, "minor": of, "permissions": "rw"})
        };
        let device =
            |name: usize| json!({"name": name.to_string(), "containerEdits": {"deviceNodes": [node(minors[name])]}});
        let file = json!({"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": [device(0), device(1)]});
        let next = folder.path().join("next");
        std::fs::write(&next, file.to_string()).unwrap();
        std::fs::rename(next, folder.path().join("nvidia.json")).unwrap();
    };
    write([0, 1]);
    let arguments = [format!("--cdi-spec-dir={}", folder.path().display())];
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let Some(engine) = Engine::start_with(&arguments, None, probe_with_gpus) else { return };
    let stage = Stage::within(engine.shared(), OutputCap::Auto, |settings| {
        rack.serve(InjectorChoice::Auto, settings);
        settings.host = Some(engine.host());
    });
    assert!(stage.sandbox.try_injectors().await);
    let found = stage.sandbox.probe().await.unwrap().gpus;
    assert_eq!((&found.injection, found.refused.as_slice()), (&Ok(Injector::Cdi), [].as_slice()));
    let act = with_gpus(stage.act(&["look-for-gpus", "/dev/nvidia1"]), &["GPU-1"]);
    assert_eq!(stage.play(&act).await.code, 0);
    assert_eq!(devices(&act), ["nvidia1"]);
    assert_eq!(act.told()["open /dev/nvidia1"], "ok");

    // A GPU was lost and has come back in another place, and nobody has written the file anew.
    write([1, 0]);
    let error = loop {
        // The engine reads the file anew when it sees that it has changed.
        let act = with_gpus(stage.act(&["wait"]), &["GPU-1"]);
        stage.sandbox.create(&act.launch).await.unwrap();
        if let Err(error) = stage.sandbox.start(&act.launch.name).await {
            break error;
        }
        stage.sandbox.remove(&act.launch.name).await.unwrap();
    };
    assert!(error.to_string().contains("was given /dev/nvidia1 has /dev/nvidia0"), "{error}");
    let left: Vec<_> = stage.sandbox.list().await.unwrap().into_iter().map(|found| found.name).collect();
    assert_eq!(left, [act.launch.name]);
}

#[tokio::test]
async fn where_nvidias_runtime_is_the_engines_own_a_job_on_the_cpu_asks_it_for_nothing() {
    let programs = tempfile::tempdir().unwrap();
    // Like NVIDIA's, an ordinary runtime that looks at the container's environment first.
    let runtime = "#!/bin/sh\nfolder=$(dirname \"$0\")\nfor last; do case $previous in --bundle) bundle=$last;; esac; \
                   previous=$last; done\n[ -z \"$bundle\" ] || grep -o 'NVIDIA_VISIBLE_DEVICES=[^\"]*' \
                   \"$bundle/config.json\" >> \"$folder/asked\"\nexec runc \"$@\"\n";
    program(programs.path(), "nvidia-container-runtime", runtime);
    let path = programs.path().join("nvidia-container-runtime");
    let register = format!("--add-runtime=nvidia={}", path.display());
    let arguments = [register.as_str(), "--default-runtime=nvidia"];
    let Some(engine) = Engine::start_with(&arguments, Some(programs.path()), probe_with_gpus) else { return };
    let stage = Stage::within(engine.shared(), OutputCap::Auto, |settings| {
        settings.image = probe_with_gpus().to_owned();
        settings.host = Some(engine.host());
    });
    let image =
        Command::new("docker").args(["inspect", "--format", "{{.Config.Env}}", probe_with_gpus()]).output().unwrap();
    assert!(String::from_utf8_lossy(&image.stdout).contains("NVIDIA_VISIBLE_DEVICES=all"), "the image asks for all");
    assert_eq!(stage.sandbox.probe().await.unwrap().runtime, Ok("nvidia".into()));
    let act = stage.act(&["look-for-gpus"]);
    assert_eq!(stage.play(&act).await.code, 0);
    let asked = std::fs::read_to_string(programs.path().join("asked")).unwrap();
    assert_eq!(asked, "NVIDIA_VISIBLE_DEVICES=void\n");
    assert_eq!(devices(&act), <[String; 0]>::default());
}
