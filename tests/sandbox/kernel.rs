//! What a container may ask of the kernel, and whether it can rise above what it was given.

use std::collections::BTreeMap;

use crate::told::Told;

#[tokio::test]
async fn no_socket_but_a_local_one_can_be_made() {
    let told = Told::from_inside().await;
    assert_eq!(told.get("families of sockets"), "1", "1 is AF_UNIX");
    assert_eq!(
        told.all("socket "),
        BTreeMap::from([
            ("unix", "ok"),
            ("inet", "EPERM"),
            ("inet6", "EPERM"),
            ("netlink", "EPERM"),
            ("packet", "EPERM"),
            ("vsock", "EPERM"),
            ("alg", "EPERM"),
            ("inet with more bits", "EPERM"),
        ])
    );
}

#[tokio::test]
async fn there_is_no_privilege_and_none_to_gain() {
    let told = Told::from_inside().await;
    assert!(told.all("Cap").values().all(|set| *set == "0000000000000000"), "{:?}", told.all("Cap"));
    assert_eq!(told.all("Cap").len(), 5);
    assert_eq!(told.get("NoNewPrivs"), "1");
    assert_eq!(told.get("Seccomp"), "2", "2 is a filter");
}

#[tokio::test]
async fn calls_that_reach_into_the_kernel_are_refused() {
    let told = Told::from_inside().await;
    let calls = told.all("syscall ");
    assert!(calls.len() > 60, "{calls:?}");
    for (call, outcome) in calls {
        // C libraries fall back to clone only on this answer.
        assert_eq!(outcome, if call == "clone3" { "ENOSYS" } else { "EPERM" }, "{call}");
    }
    // These would succeed for anybody, were it not for the filter.
    let telling = told.all("telling ");
    assert_eq!(telling.len(), 8);
    assert!(telling.values().all(|outcome| *outcome == "EPERM"), "{telling:?}");
}

#[tokio::test]
async fn calls_newer_than_the_filter_are_refused() {
    assert_eq!(Told::from_inside().await.get("newer system calls"), "");
}

#[tokio::test]
async fn no_namespace_can_be_made_or_entered() {
    let told = Told::from_inside().await;
    for (what, count) in [("new ", 8), ("child in a new ", 7)] {
        let outcomes = told.all(what);
        assert_eq!(outcomes.len(), count);
        assert!(outcomes.values().all(|outcome| *outcome == "EPERM"), "{what}{outcomes:?}");
    }
    let entered = told.all("enter a ");
    assert_eq!(entered.len(), 8);
    // Those of the first process cannot even be looked at.
    assert!(entered.values().all(|outcome| ["EPERM", "EACCES", "ENOENT"].contains(outcome)), "{entered:?}");
}

#[tokio::test]
async fn the_kernels_doors_for_other_programs_are_shut() {
    if std::env::consts::ARCH != "x86_64" {
        return crate::stage::skipped("only x86-64 has such doors");
    }
    let told = Told::from_inside().await;
    for door in ["call-32-bit", "call-x32"] {
        let ended = told.get(door);
        assert!(ended.contains("signal: 31") || ended == "exit status: 1", "{door}: {ended}");
    }
}

#[tokio::test]
async fn nobody_can_become_somebody_else() {
    let told = Told::from_inside().await;
    for what in ["setuid", "setresuid", "setgid", "setgroups", "ambient capability", "securebits", "all capabilities"] {
        assert_eq!(told.get(&format!("rise {what}")), "EPERM", "{what}");
    }
    assert_eq!(told.get("rise setuid file made"), "ok", "it is of no use where it lies");
    assert_eq!(told.get("rise owner of a setuid file"), told.user.0.to_string());
    assert_eq!(told.get("rise give a file to root"), "EPERM");
    assert_eq!(told.get("rise capability of a file"), "EPERM");
}

#[tokio::test]
async fn limits_cannot_be_raised() {
    let told = Told::from_inside().await;
    for limit in ["limit core", "limit nofile", "limit fsize", "real-time scheduling", "real-time disk"] {
        assert_eq!(told.get(&format!("rise {limit}")), "EPERM", "{limit}");
    }
    assert_eq!(told.get("rise priority"), "EACCES");
    // When the host itself is out of memory: a job can make itself an ordinary process again, and nothing better.
    let killed_later = told.all("rise killed later, by ");
    let expected = [("-1", "EACCES"), ("-1000", "EACCES"), ("-500", "EACCES"), ("0", "ok"), ("499", "ok")];
    assert_eq!(killed_later, BTreeMap::from(expected));
}
