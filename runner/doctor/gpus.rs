//! The host's GPUs: whether there are any, and what keeps jobs from them.

use drydock_gpu::inventory::Inventory;
use drydock_gpu::nvml::NoGpus;

use super::{Check, ok, size, warn};
use crate::api::{GpuList, GpuView};

const NAME: &str = "gpus";

/// What the driver tells, and what the gateway knows besides. A host without GPUs is as good as any other.
pub(super) fn checks(looked: &Result<Inventory, NoGpus>, list: Option<&GpuList>) -> Vec<Check> {
    let look = match looked {
        Ok(look) if look.gpus.is_empty() => return vec![ok(NAME, "the driver knows of none; jobs run on the CPU")],
        Ok(look) => look,
        Err(error @ NoGpus::NoLibrary(_)) => return vec![ok(NAME, format!("none: {error}; jobs run on the CPU"))],
        Err(error) => return vec![unusable(error)],
    };
    let driver = look.driver.as_deref().unwrap_or("of unknown version");
    let cuda = look.cuda.as_deref().map_or_else(String::new, |cuda| format!(", CUDA {cuda}"));
    let each = |name: &str| look.gpus.iter().filter(|gpu| gpu.name == name).count();
    let mut names: Vec<_> = look.gpus.iter().map(|gpu| gpu.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let counted: Vec<_> = names.into_iter().map(|name| format!("{} x {name}", each(name))).collect();
    let mut found = vec![ok(NAME, format!("{}; driver {driver}{cuda}", counted.join(", ")))];
    let lost = look.silent.len() + look.gpus.iter().filter(|gpu| gpu.lost).count();
    if lost > 0 {
        found.push(warn(
            NAME,
            format!("{lost} lost to the driver"),
            "look for `NVRM: Xid` in `dmesg`, and reboot the host",
        ));
    }
    found.extend(list.into_iter().flat_map(|list| &list.gpus).flat_map(in_use));
    found
}

/// Words that say what is wrong before what to do about it are one sentence each.
fn unusable(error: &NoGpus) -> Check {
    let text = error.to_string();
    let (found, mend) = text.rsplit_once("; ").unwrap_or((&text, "see `nvidia-smi`"));
    warn(NAME, format!("{found}; jobs run on the CPU"), mend)
}

/// What keeps jobs from a GPU.
fn in_use(view: &GpuView) -> Vec<Check> {
    let called = view.gpu.called();
    let cordoned = view.cordon.as_ref().map(|cordon| {
        let mend = format!("when it is mended: drydock gpus uncordon {}", cordon.uuid);
        warn(NAME, format!("{called} is cordoned by {}: {}", cordon.by, cordon.reason), mend)
    });
    let strangers = view.strangers.map(|strangers| {
        let names = view.gpu.processes.iter().filter(|process| process.job.is_none());
        let names: Vec<_> = names
            .map(|process| format!("{} (pid {})", process.name.as_deref().unwrap_or("unknown"), process.pid))
            .collect();
        let found = format!("{called}: {} not of drydock hold {}", names.join(", "), size(strangers.memory_bytes));
        warn(NAME, found, "drydock leaves them alone; end them, or keep jobs off it: drydock gpus cordon UUID")
    });
    [cordoned, strangers].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use drydock_gpu::inventory::{Gpu, Process};

    use super::super::Verdict;
    use super::*;
    use crate::api::Strangers;
    use crate::store::Cordon;

    fn gpu(index: u32) -> Gpu {
        Gpu { index, uuid: format!("GPU-{index}"), name: "NVIDIA H200".into(), ..Gpu::default() }
    }

    #[test]
    fn why_jobs_run_on_the_cpu_is_said_with_what_to_do_where_something_can_be_done() {
        let only = |looked: Result<Inventory, NoGpus>| {
            let checks = checks(&looked, None);
            let [check] = &checks[..] else { panic!("{checks:?}") };
            assert!(check.found.contains("jobs run on the CPU"), "{check:?}");
            (check.verdict, check.mend.clone())
        };
        assert_eq!(only(Err(NoGpus::NoLibrary("no such file".into()))).0, Verdict::Ok);
        assert_eq!(only(Ok(Inventory::default())).0, Verdict::Ok);
        for (error, mend) in [
            (NoGpus::NoDriver, "load it with `modprobe nvidia`"),
            (NoGpus::VersionMismatch, "reboot the host"),
            (NoGpus::Silent, "see `nvidia-smi` and the kernel's log, and reboot the host"),
        ] {
            assert_eq!(only(Err(error)), (Verdict::Warn, Some(mend.into())));
        }
    }

    #[test]
    fn what_is_cordoned_or_held_by_others_is_named() {
        let stranger =
            Process { pid: 4711, name: Some("ollama".into()), memory_bytes: Some(5 << 30), ..Process::default() };
        let cordon = Cordon {
            uuid: "GPU-1".into(),
            reason: "has told of Xid 79".into(),
            at_ms: 1,
            by: "drydock".into(),
            fatal: true,
        };
        let view = |gpu: Gpu| GpuView { gpu, held_by: vec![], strangers: None, cordon: None };
        let held = GpuView {
            strangers: Some(Strangers { processes: 1, memory_bytes: 5 << 30 }),
            ..view(Gpu { processes: vec![stranger], ..gpu(0) })
        };
        let gpus = vec![held, GpuView { cordon: Some(cordon), ..view(gpu(1)) }];
        let list = GpuList { gpus, problem: None, driver: None, cuda: None, looked_ms: None, gone: vec![] };
        let look = Inventory {
            driver: Some("580".into()),
            gpus: vec![gpu(0), gpu(1)],
            silent: vec![2],
            ..Inventory::default()
        };
        let found: Vec<_> = checks(&Ok(look), Some(&list)).into_iter().map(|check| check.found).collect();
        assert_eq!(
            found,
            [
                "2 x NVIDIA H200; driver 580",
                "1 lost to the driver",
                "NVIDIA H200 (GPU-0): ollama (pid 4711) not of drydock hold 5.0 GiB",
                "NVIDIA H200 (GPU-1) is cordoned by drydock: has told of Xid 79",
            ]
        );
    }
}
