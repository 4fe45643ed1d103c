//! How the gateway itself is doing.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use drydock_gpu::inventory::Gpu;
use schemars::JsonSchema;
use serde::Serialize;

use super::Gateway;
use super::error::Refusal;
use crate::gpus::Known;

/// What went through the gateway since it started.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    /// Requests by the first digit of their status, 1 to 5.
    answers: [AtomicU64; 5],
    watchers: Arc<AtomicI64>,
}

/// A client that follows a job; it counts for as long as this lives.
#[derive(Debug)]
pub(super) struct Watcher(Arc<AtomicI64>);

impl Traffic {
    pub(super) fn answered(&self, status: StatusCode) {
        if let Some(count) = self.answers.get(usize::from(status.as_u16() / 100).wrapping_sub(1)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn watcher(&self) -> Watcher {
        self.watchers.fetch_add(1, Ordering::Relaxed);
        Watcher(self.watchers.clone())
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(super) async fn alive() -> &'static str {
    "ok\n"
}

/// Whether jobs can be accepted and started, in words.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Readiness {
    ready: bool,
    database: String,
    engine: String,
    disk: String,
    /// How containers get GPUs, on a host that has some. Jobs on the CPU do without.
    #[serde(skip_serializing_if = "Option::is_none")]
    gpus: Option<String>,
}

pub(super) async fn ready(State(gateway): State<Arc<Gateway>>) -> Response {
    let database = gateway.desk.store.ping().await;
    let engine = gateway.desk.engine.ready();
    let room = gateway.desk.disk.now();
    let gpus =
        engine.as_ref().ok().filter(|(info, _)| info.gpus.units > 0).map(|(info, _)| match &info.gpus.injection {
            Ok(injector) => format!("containers get them by {injector}"),
            Err(why) => format!("no container gets any: {why}"),
        });
    let readiness = Readiness {
        gpus,
        ready: database.is_ok() && engine.is_ok() && room.shortage.is_none(),
        database: match database {
            Ok(()) => "answers".into(),
            Err(error) => Refusal::from(error).body.message,
        },
        engine: match engine {
            Ok((info, image)) => format!("{} answers and has the worker image {image}", info.engine),
            Err(error) => error.to_string(),
        },
        disk: match room.shortage {
            None => format!("{} free", crate::blobs::size(room.free_bytes)),
            Some(shortage) => shortage.to_string(),
        },
    };
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness)).into_response()
}

pub(super) async fn metrics(State(gateway): State<Arc<Gateway>>) -> Result<Response, Refusal> {
    let host = gateway.desk.host().await?;
    let mut page = Page::default();
    page.family("drydock_jobs", "gauge", "Jobs by state.");
    for (state, jobs) in &host.jobs {
        page.value(&format!("{{state=\"{state}\"}}"), *jobs);
    }
    page.family("drydock_cpu_millis", "gauge", "Thousandths of CPUs that jobs may use.");
    page.value("{part=\"all\"}", host.cpu_millis);
    page.value("{part=\"free\"}", host.cpu_millis_free);
    page.family("drydock_memory_bytes", "gauge", "Memory that jobs may use.");
    page.value("{part=\"all\"}", host.memory_bytes);
    page.value("{part=\"free\"}", host.memory_bytes_free);
    page.family("drydock_engine_up", "gauge", "Whether the container engine answers and has the worker image.");
    page.value("", u64::from(host.problems.is_empty()));
    page.family("drydock_disk_free_bytes", "gauge", "Room on the state folder's disk.");
    page.value("", gateway.desk.disk.now().free_bytes);
    let (busy, open) = gateway.desk.store.connections();
    page.family("drydock_database_connections", "gauge", "Connections to the database.");
    page.value("{state=\"busy\"}", busy);
    page.value("{state=\"open\"}", open);
    gpus(&mut page, &gateway.desk.gpus.now());
    page.family("drydock_watchers", "gauge", "Clients that follow a job's events.");
    page.value("", gateway.traffic.watchers.load(Ordering::Relaxed));
    page.family("drydock_http_requests_total", "counter", "Requests answered, by class of status.");
    for (class, count) in gateway.traffic.answers.iter().enumerate() {
        page.value(&format!("{{status=\"{}xx\"}}", class + 1), count.load(Ordering::Relaxed));
    }
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page.text).into_response())
}

fn gpus(page: &mut Page, known: &Known) {
    let label = |gpu: &Gpu| format!("{{uuid=\"{}\"}}", gpu.uuid);
    let mut family = |name, told, value: fn(&Gpu) -> Option<f64>| {
        let values: Vec<_> = known.each().filter_map(|gpu| Some((label(gpu), value(gpu)?))).collect();
        if !values.is_empty() {
            page.family(name, "gauge", told);
            values.iter().for_each(|(label, value)| page.value(label, value));
        }
    };
    family("drydock_gpu_memory_bytes", "Memory of a GPU.", |gpu| Some(gpu.memory.total_bytes as f64));
    family("drydock_gpu_memory_used_bytes", "Memory of a GPU that anybody holds.", |gpu| {
        Some(gpu.memory.used_bytes() as f64)
    });
    family("drydock_gpu_utilization_percent", "Time in which a GPU computes.", |gpu| {
        gpu.utilization.map(|of| f64::from(of.gpu_percent))
    });
    family("drydock_gpu_temperature_celsius", "Temperature of a GPU.", |gpu| gpu.temperature_celsius.map(f64::from));
    family("drydock_gpu_power_watts", "What a GPU draws.", |gpu| gpu.power_watts);
    family("drydock_gpu_cordoned", "Whether no job gets a GPU.", |gpu| {
        Some(f64::from(u8::from(gpu.cordoned.is_some())))
    });
}

/// Prometheus' text format.
#[derive(Default)]
struct Page {
    text: String,
    name: &'static str,
}

impl Page {
    fn family(&mut self, name: &'static str, kind: &str, told: &str) {
        self.name = name;
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {told}\n# TYPE {name} {kind}");
    }

    fn value(&mut self, labels: &str, value: impl std::fmt::Display) {
        let _ = writeln!(self.text, "{}{labels} {value}", self.name);
    }
}
