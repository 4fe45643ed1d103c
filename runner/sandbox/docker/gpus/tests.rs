use drydock_gpu::inventory::{Gpu, Slice};
use serde_json::{Value, json};

use super::*;

/// A host with two GPUs, of which the second is divided, and a driver: files below a folder of the test's own.
struct Rack {
    root: tempfile::TempDir,
    gpus: Inventory,
}

impl Rack {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        put("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.2  Tue Mar 5\n");
        // The order of buses need not be that of the device files.
        put("proc/driver/nvidia/gpus/0000:01:00.0/information", "GPU UUID: \t GPU-a\nDevice Minor: \t 1\n");
        put("proc/driver/nvidia/gpus/0000:02:00.0/information", "GPU UUID: \t GPU-b\nDevice Minor: \t 0\n");
        put("proc/driver/nvidia/capabilities/gpu0/mig/gi7/access", "DeviceFileMinor: 66\nDeviceFileMode: 292\n");
        put("proc/driver/nvidia/capabilities/gpu0/mig/gi7/ci0/access", "DeviceFileMinor: 67\nDeviceFileMode: 292\n");
        for node in
            ["nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-caps/nvidia-cap66", "nvidia-caps/nvidia-cap67"]
        {
            put(&format!("dev/{node}"), "");
        }
        put("usr/lib64/libcuda.so.580.2", "");
        put("usr/lib64/libnvidia-ml.so.580.2", "");
        // One between them was removed.
        let slices = vec![
            Slice { uuid: "MIG-c".into(), index: 0, ..Slice::default() },
            Slice { uuid: "MIG-d".into(), index: 2, instances: Some((7, 0)), ..Slice::default() },
        ];
        let gpus = vec![
            Gpu { index: 0, uuid: "GPU-a".into(), ..Gpu::default() },
            Gpu { index: 1, uuid: "GPU-b".into(), slices, ..Gpu::default() },
        ];
        Self { root, gpus: Inventory { gpus, ..Inventory::default() } }
    }

    fn request(&self, injector: Injector, units: &[&str], cdi: &[&str]) -> Result<Value, String> {
        let units: Vec<_> = units.iter().map(|unit| (*unit).to_owned()).collect();
        let listed = cdi.iter().map(|name| format!("nvidia.com/gpu={name}")).collect();
        let host = Host {
            gpus: &self.gpus,
            root: self.root.path(),
            cdi: &CdiDevices { spoken: !cdi.is_empty(), listed },
            library_path: Some("/opt/cublas"),
        };
        let request = request(injector, &units, &host)?;
        let root = self.root.path().canonicalize().unwrap().display().to_string();
        let body = json!({
            "Env": request.env,
            "Devices": request.devices,
            "DeviceRequests": request.device_requests,
            "Mounts": request.mounts,
        });
        Ok(serde_json::from_str(&body.to_string().replace(&root, "")).unwrap())
    }

    fn remove(&self, path: &str) {
        let path = self.root.path().join(path);
        if path.is_dir() { std::fs::remove_dir_all(path).unwrap() } else { std::fs::remove_file(path).unwrap() }
    }
}

#[test]
fn by_cdi_every_gpu_is_asked_for_by_its_own_name() {
    let body = Rack::new().request(Injector::Cdi, &["GPU-a", "GPU-b"], &["GPU-a", "GPU-b", "all"]).unwrap();
    assert_eq!(
        body,
        json!({
            "Env": ["NVIDIA_VISIBLE_DEVICES=void"],
            "Devices": [],
            "DeviceRequests": [{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=GPU-a", "nvidia.com/gpu=GPU-b"]}],
            "Mounts": [],
        })
    );
}

#[test]
fn where_cdi_devices_are_numbered_a_gpu_is_found_by_its_place_at_the_moment() {
    let rack = Rack::new();
    let ids = |units: &[&str], listed: &[&str]| {
        rack.request(Injector::Cdi, units, listed).map(|body| body["DeviceRequests"][0]["DeviceIDs"].clone())
    };
    assert_eq!(ids(&["GPU-b"], &["0", "1", "1:0", "1:1", "all"]).unwrap(), json!(["nvidia.com/gpu=1"]));
    let slices = ids(&["MIG-c", "MIG-d"], &["0", "1:0", "1:2"]).unwrap();
    assert_eq!(slices, json!(["nvidia.com/gpu=1:0", "nvidia.com/gpu=1:2"]));
    assert_eq!(ids(&["MIG-c"], &["gpu0", "mig1:0"]).unwrap(), json!(["nvidia.com/gpu=mig1:0"]));
    let unlisted = ids(&["GPU-b"], &["0", "all"]).unwrap_err();
    assert!(unlisted.contains("GPU-b") && unlisted.contains("nvidia-ctk cdi generate"), "{unlisted}");
    assert!(ids(&["GPU-a"], &[]).unwrap_err().contains("28.2"));
}

#[test]
fn an_engine_that_speaks_cdi_and_lists_nothing_is_asked_by_uuid() {
    let cdi = CdiDevices { spoken: true, listed: Vec::new() };
    assert_eq!(cdi::names(&["GPU-a".into()], &Rack::new().gpus, &cdi).unwrap(), ["nvidia.com/gpu=GPU-a"]);
}

#[test]
fn what_an_engine_lists_of_cdi_is_read() {
    let system: bollard::models::SystemInfo = serde_json::from_value(json!({
        "DiscoveredDevices": [
            {"Source": "cdi", "ID": "nvidia.com/gpu=1"},
            {"Source": "cdi", "ID": "nvidia.com/gpu=0"},
            {"Source": "other", "ID": "example.com/thing=0"},
        ],
        "CDISpecDirs": ["/etc/cdi", "/var/run/cdi"],
    }))
    .unwrap();
    let listed = ["nvidia.com/gpu=0", "nvidia.com/gpu=1"].map(str::to_owned).to_vec();
    assert_eq!(CdiDevices::of(&system), CdiDevices { spoken: true, listed });
    let folders_only = bollard::models::SystemInfo { discovered_devices: None, ..system };
    assert_eq!(CdiDevices::of(&folders_only), CdiDevices { spoken: true, listed: Vec::new() });
    assert_eq!(CdiDevices::of(&Default::default()), CdiDevices::default());
}

#[test]
fn nvidias_toolkit_is_asked_for_each_gpu_by_uuid_and_for_computing_only() {
    let body = Rack::new().request(Injector::Nvidia, &["GPU-a", "MIG-c"], &[]).unwrap();
    assert_eq!(
        body,
        json!({
            "Env": ["NVIDIA_VISIBLE_DEVICES=GPU-a,MIG-c", "NVIDIA_DRIVER_CAPABILITIES=compute,utility"],
            "Devices": [],
            "DeviceRequests": [{
                "Driver": "nvidia",
                "DeviceIDs": ["GPU-a", "MIG-c"],
                "Capabilities": [["gpu", "compute", "utility"]],
            }],
            "Mounts": [],
        })
    );
}

#[test]
fn as_plain_devices_a_gpu_comes_with_what_all_share_and_the_drivers_libraries() {
    let body = Rack::new().request(Injector::Devices, &["GPU-a"], &[]).unwrap();
    let device = |name: &str| {
        let path = format!("/dev/{name}");
        json!({"PathOnHost": path, "PathInContainer": path, "CgroupPermissions": "rw"})
    };
    let library = |file: &str, name: &str| {
        json!({
            "Type": "bind",
            "Source": format!("/usr/lib64/{file}"),
            "Target": format!("/usr/local/nvidia/lib64/{name}"),
            "ReadOnly": true,
            "BindOptions": {"Propagation": "rprivate"},
        })
    };
    assert_eq!(
        body,
        json!({
            "Env": ["NVIDIA_VISIBLE_DEVICES=void", "LD_LIBRARY_PATH=/usr/local/nvidia/lib64:/opt/cublas"],
            "Devices": [device("nvidia-uvm"), device("nvidia1"), device("nvidiactl")],
            "DeviceRequests": [],
            "Mounts": [
                library("libcuda.so.580.2", "libcuda.so.1"),
                library("libcuda.so.580.2", "libcuda.so.580.2"),
                library("libnvidia-ml.so.580.2", "libnvidia-ml.so.1"),
                library("libnvidia-ml.so.580.2", "libnvidia-ml.so.580.2"),
            ],
        })
    );
}

#[test]
fn as_plain_devices_a_slice_is_its_gpu_and_its_two_capabilities() {
    let body = Rack::new().request(Injector::Devices, &["MIG-d"], &[]).unwrap();
    let names: Vec<_> =
        body["Devices"].as_array().unwrap().iter().map(|device| device["PathInContainer"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "/dev/nvidia-caps/nvidia-cap66",
            "/dev/nvidia-caps/nvidia-cap67",
            "/dev/nvidia-uvm",
            "/dev/nvidia0",
            "/dev/nvidiactl",
        ]
    );
}

#[test]
fn what_plain_devices_lack_is_said_with_the_next_step() {
    let why = |change: fn(&Rack), unit: &str| {
        let rack = Rack::new();
        change(&rack);
        rack.request(Injector::Devices, &[unit], &[]).unwrap_err()
    };
    for (change, unit, words) in [
        ((|rack| rack.remove("proc/driver/nvidia/version")) as fn(&Rack), "GPU-a", "driver is not loaded"),
        (|rack| rack.remove("usr/lib64/libcuda.so.580.2"), "GPU-a", "libcuda.so.580.2 is in none of"),
        (|rack| rack.remove("dev/nvidia-uvm"), "GPU-a", "nvidia-modprobe"),
        (|rack| rack.remove("dev/nvidia1"), "GPU-a", "/dev/nvidia1 is not there"),
        (|rack| rack.remove("proc/driver/nvidia/gpus"), "GPU-a", "nvidia-persistenced"),
        (|_| {}, "MIG-c", "use CDI or NVIDIA's toolkit"),
        (|_| {}, "GPU-z", "not on this host any more"),
    ] {
        let why = why(change, unit);
        assert!(why.contains(words), "{why}");
    }
}

#[test]
fn what_an_engine_says_of_gpus_is_told_from_its_other_troubles() {
    for message in [
        r#"could not select device driver "cdi" with capabilities: []"#,
        r#"could not select device driver "nvidia" with capabilities: [[gpu compute utility]]"#,
        r#"error gathering device information while adding custom device "/dev/nvidia0": no such file or directory"#,
        "failed to create task for container: OCI runtime create failed: runc create failed: unable to start container \
         process: error during container init: error running prestart hook #0: exit status 1, stderr: \
         nvidia-container-cli: initialization error: nvml error: driver not loaded",
        "CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=7",
        "failed to fulfil mount request: open /usr/lib64/libnvidia-ml.so.580.2: no such file or directory",
    ] {
        assert!(speaks_of_injection(message), "{message}");
    }
    for message in ["OCI runtime create failed: container with id exists", "no space left on device"] {
        assert!(!speaks_of_injection(message), "{message}");
    }
}
