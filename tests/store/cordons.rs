use drydock::store::BY_DRYDOCK;
use drydock_spec::Report;
use drydock_spec::report::GpuReading;

use super::{House, ReportBatch, stage_line};

#[tokio::test]
async fn the_first_reason_of_a_cordon_stays_unless_damage_is_found_behind_it() {
    let house = House::new().await;
    let cordon = async |reason: &str, by: &str, fatal| house.store.cordon("GPU-0", reason, by, fatal).await.unwrap();
    let now = async || {
        let all = house.store.cordons().await.unwrap();
        let [cordon] = &all[..] else { panic!("{all:?}") };
        (cordon.reason.clone(), cordon.by.clone(), cordon.fatal)
    };
    assert!(cordon("the fan rattles", "ann", false).await);
    assert!(!cordon("a row waits for a reset", BY_DRYDOCK, false).await);
    assert_eq!(now().await, ("the fan rattles".into(), "ann".into(), false));
    assert!(cordon("has told of Xid 79", BY_DRYDOCK, true).await);
    assert!(!cordon("is lost to the driver", BY_DRYDOCK, true).await && !cordon("it smells", "ann", false).await);
    assert_eq!(now().await, ("has told of Xid 79".into(), BY_DRYDOCK.into(), true));
    assert!(house.store.uncordon("GPU-0").await.unwrap() && !house.store.uncordon("GPU-0").await.unwrap());
    assert!(house.store.cordons().await.unwrap().is_empty());
}

#[tokio::test]
async fn what_the_host_says_of_an_attempt_is_a_line_of_its_log_and_no_word_of_its_worker() {
    let house = House::new().await;
    let id = house.submit(1, 0).await;
    let mut lease = house.claim(id).await;
    lease.record(&ReportBatch { lines: vec![stage_line(1)], end_offset: 10 }).await.unwrap();
    let heard = lease.row().last_report_ms;
    let reading = |used: u64| GpuReading {
        uuid: "GPU-0".into(),
        memory_used_bytes: used,
        memory_peak_bytes: 9,
        utilization_percent: Some(97),
        power_watts: None,
    };
    house.clock.advance(5000);
    for used in [9, 4] {
        lease.observe(Report::Gpus { gpus: vec![reading(used)] }).await.unwrap();
    }
    assert_eq!(lease.gpus_said().await.unwrap(), [reading(4)]);
    assert_eq!(lease.last_report().await.unwrap().unwrap().report.name(), "stage", "the worker's last word");
    assert_eq!((lease.row().last_report_ms, lease.row().report_offset), (heard, 10), "it is no sign of life");
    let log = house.store.log(id, 0, 100).await.unwrap();
    assert_eq!(log.iter().map(|line| line.seq).collect::<Vec<_>>(), (1..=5).collect::<Vec<_>>(), "without gaps");
    assert_eq!(house.store.job(id).await.unwrap().last_seq, 5);
}
