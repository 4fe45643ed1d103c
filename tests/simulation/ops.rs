//! What may happen.

use drydock_spec::report::Checkpoint;
use drydock_spec::{Failure, FailureKind, Report, Stage};
use proptest::prelude::*;

use crate::harness::scripted::{Step, finished, started};

/// One thing that happens.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    /// Somebody submits a job whose worker will tell this story; perhaps one that reads what another one leaves, or one
    /// that needs most of the host.
    Submit {
        story: Story,
        reads: Option<usize>,
        large: bool,
        attempts: u32,
        gpus: Gpus,
    },
    Cancel(usize),
    /// The passes of the runner.
    Dispatch,
    Adopt,
    Sweep,
    /// The runner asks the engine whether it is there.
    Probe,
    /// Containers do what comes after their pause.
    GoOn,
    /// Milliseconds pass.
    Advance(i64),
    /// The host's clock is set on or back.
    SetClock(i64),
    /// The engine does what it is told the next times, and its replies are lost.
    LoseReplies(u32),
    EngineDown,
    EngineUp,
    /// The engine dies with all containers and comes back.
    EngineCrash,
    /// Somebody removes all containers by hand.
    Forget,
    RefuseStarts(bool),
    /// The disk is full, or has room again.
    DiskFull(bool),
    /// Somebody takes one of the host's GPUs out of service; what runs on it goes on.
    Cordon(usize),
    /// One of them is damaged: nothing on it may go on.
    Damage(usize),
    /// All of them are in order again.
    Mend,
    /// The runner is killed after its threads have got so far, and started again.
    Crash {
        polls: u32,
    },
    /// The runner is stopped in good order, and started again.
    Restart,
}

/// What a worker does; it pauses at several points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Story {
    Success,
    /// It says why it failed.
    Diverges,
    OutOfMemory,
    Crashes,
    /// It is killed by somebody else, with nothing to go on from.
    Killed,
    /// The same after a checkpoint.
    Lost,
    /// It says something and then nothing any more.
    Silent,
    /// It says nothing at all and ends.
    Mute,
    /// It does everything, and the engine never notices that it has ended.
    FinishesUnseen,
    /// It ends while the engine does not look, which finds out too late how.
    VanishesUnseen,
    /// It crashes while the engine does not look, which finds out later.
    CrashesUnseen,
}

/// What a job wants of the host's GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gpus {
    None,
    /// So many to itself.
    Own(u32),
    /// A part of one, in the scripted host's bytes.
    Share(u64),
}

impl Op {
    pub(crate) fn submit(story: Story) -> Self {
        Self::Submit { story, reads: None, large: false, attempts: 3, gpus: Gpus::None }
    }
}

impl Story {
    /// The steps. Reports are numbered, so that a lost or doubled one shows.
    pub(crate) fn steps(self) -> Vec<Step> {
        let count = |done| Step::Say(Report::Progress { stage: Stage::Train, done, total: 9 });
        let exit = |code, oom_killed| Step::Exit { code, oom_killed };
        let done = |end| {
            vec![
                Step::Make { path: "adapter/adapter_model.safetensors", content: b"weights" },
                Step::Make { path: "adapter/adapter_config.json", content: b"weights" },
                Step::Say(finished()),
                end,
            ]
        };
        let end = match self {
            Self::Mute => return vec![Step::Pause, exit(3, false)],
            Self::Success => done(exit(0, false)),
            Self::FinishesUnseen => done(Step::ExitUnseen(None)),
            Self::VanishesUnseen => vec![Step::ExitUnseen(Some(255))],
            Self::CrashesUnseen => vec![Step::ExitUnseen(Some(139))],
            Self::Diverges => {
                vec![Step::Say(Report::Failed(Failure::new(FailureKind::Diverged, "no number"))), exit(1, false)]
            }
            Self::OutOfMemory => vec![exit(137, true)],
            Self::Crashes => vec![exit(139, false)],
            Self::Killed => vec![exit(137, false)],
            Self::Lost => vec![
                Step::Make { path: "checkpoints/step-5/state", content: b"sixsix" },
                Step::Say(Report::Checkpoint(Checkpoint { step: 5, path: "checkpoints/step-5".into(), bytes: 6 })),
                exit(137, false),
            ],
            Self::Silent => vec![Step::Pause; 200],
        };
        [vec![Step::Say(started()), count(0), Step::Pause, count(1), count(2), Step::Pause, count(3)], end].concat()
    }
}

/// How often a kind of trouble comes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weights {
    pub(crate) crashes: u32,
    pub(crate) engine: u32,
    pub(crate) time: u32,
}

pub(crate) fn drawn(Weights { crashes, engine, time }: Weights) -> impl Strategy<Value = Op> {
    let story = proptest::sample::select(vec![
        Story::Success,
        Story::Success,
        Story::Success,
        Story::Diverges,
        Story::OutOfMemory,
        Story::Crashes,
        Story::Killed,
        Story::Lost,
        Story::Lost,
        Story::Silent,
        Story::Mute,
        Story::FinishesUnseen,
        Story::VanishesUnseen,
        Story::CrashesUnseen,
    ]);
    let gpus = prop_oneof![
        4 => Just(Gpus::None),
        4 => (1..4u32).prop_map(Gpus::Own),
        2 => (1..80u64).prop_map(Gpus::Share),
    ];
    let submit = (story, proptest::option::weighted(0.3, 0..6usize), proptest::bool::weighted(0.2), 1..4u32, gpus)
        .prop_map(|(story, reads, large, attempts, gpus)| Op::Submit { story, reads, large, attempts, gpus });
    let trouble = prop_oneof![
        3 => (1..5u32).prop_map(Op::LoseReplies),
        2 => Just(Op::EngineDown),
        3 => Just(Op::EngineUp),
        2 => Just(Op::EngineCrash),
        1 => Just(Op::Forget),
        2 => any::<bool>().prop_map(Op::RefuseStarts),
        2 => Just(Op::Probe),
    ];
    let passing = prop_oneof![
        4 => (1..20_000i64).prop_map(Op::Advance),
        2 => (20_000..400_000i64).prop_map(Op::Advance),
        1 => (-7_200_000..7_200_000i64).prop_map(Op::SetClock),
        1 => any::<bool>().prop_map(Op::DiskFull),
        1 => (0..crate::life::GPUS).prop_map(Op::Cordon),
        1 => (0..crate::life::GPUS).prop_map(Op::Damage),
        1 => Just(Op::Mend),
    ];
    let end = prop_oneof![3 => (0..40u32).prop_map(|polls| Op::Crash { polls }), 1 => Just(Op::Restart)];
    prop_oneof![
        6 => submit,
        2 => (0..6usize).prop_map(Op::Cancel),
        8 => Just(Op::Dispatch),
        8 => Just(Op::GoOn),
        2 => Just(Op::Adopt),
        2 => Just(Op::Sweep),
        engine => trouble,
        time => passing,
        crashes => end,
    ]
}

/// Sequences that broke a rule before something was mended.
pub(crate) fn once_broken() -> Vec<Vec<Op>> {
    vec![
        // The clock is set on while an attempt is in good hands: two would have been at work on it.
        vec![
            Op::submit(Story::Success),
            Op::Dispatch,
            Op::SetClock(3_600_000),
            Op::Adopt,
            Op::GoOn,
            Op::Adopt,
            Op::GoOn,
        ],
        // The clock is set on and the runner dies: the next one would have ended the attempt for its time.
        vec![
            Op::submit(Story::Success),
            Op::Dispatch,
            Op::SetClock(7_000_000),
            Op::Crash { polls: 0 },
            Op::Advance(1000),
        ],
        // The reply to the start is lost, and somebody removes the container before its worker has said anything: it
        // would have been started a second time.
        vec![
            Op::LoseReplies(2),
            Op::Submit { story: Story::Mute, reads: None, large: false, attempts: 1, gpus: Gpus::None },
            Op::Dispatch,
            Op::Advance(500),
            Op::Forget,
        ],
        // The engine never notices that the worker has ended: the job would have failed as silent.
        vec![Op::submit(Story::FinishesUnseen), Op::Dispatch, Op::GoOn, Op::GoOn, Op::Advance(61_000)],
        // The clock is set back after a lost attempt: the retry would have waited for hours.
        vec![Op::submit(Story::Killed), Op::Dispatch, Op::GoOn, Op::GoOn, Op::SetClock(-7_000_000), Op::Dispatch],
    ]
}
