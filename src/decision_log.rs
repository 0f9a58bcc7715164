//! The decision log: a line for each decision, so that what was decided can be told, and decided
//! anew, later.
//!
//! The engine tells each decision here, so no door can forget to. A line is written in memory by
//! the thread that decided, what is masked is so from then on, and a thread of the log's own puts
//! it where it belongs. Nothing here decides, or keeps an answer.

mod id;
mod json;
mod lines;
mod queue;
mod record;
mod shown;
mod writer;

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub use id::DecisionId;
pub use lines::{Collector, Lines, OpenError, Receipt, Refusal, SendError};
pub use record::{Answers, CacheUse, Told};
pub use writer::Writer;

use crate::config::decision_log::{DecisionLogConfig, Share};
use crate::pdp::answer::Decision;
use crate::pdp::settings::OnPolicyError;
use id::Dice;
use queue::Queue;
use record::{Format, Stamp};
use shown::Shown;

/// The side of the log that is told decisions.
#[derive(Clone, Debug)]
pub struct DecisionLog {
    allow_sample: Share,
    format: Arc<Format>,
    queue: Arc<Queue>,
}

/// What the log did since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DecisionLogFigures {
    /// Records that were written.
    pub written: u64,
    /// Records that were lost for want of room, or of time at the end.
    pub dropped: u64,
    /// Records that a collector refused for good.
    pub refused: u64,
    /// Attempts at writing that failed. What they were to write is tried again.
    pub failed: u64,
    /// Bytes of records that wait to be written now.
    pub queue_bytes: u64,
}

/// The call that a query came with, as far as the log tells of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Origin<'a> {
    /// What was called.
    pub method: Method,
    /// The trace that the caller's call is part of: 32 hex digits.
    pub trace_id: Option<&'a str>,
    /// Who called, if that is known.
    pub caller: Option<&'a str>,
}

/// What was called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// One question.
    #[default]
    Authorize,
    /// Many at once.
    BatchAuthorize,
    /// One after the other.
    StreamAuthorize,
}

impl Method {
    fn name(self) -> &'static str {
        match self {
            Self::Authorize => "Authorize",
            Self::BatchAuthorize => "BatchAuthorize",
            Self::StreamAuthorize => "StreamAuthorize",
        }
    }
}

/// A log that goes where `lines` leads. Lines are written from here on, and wait for
/// [`Writer::finish`] at the end.
///
/// # Errors
///
/// The system's, when there is no thread to write with.
pub fn open(
    config: &DecisionLogConfig,
    on_policy_error: OnPolicyError,
    lines: Lines,
) -> io::Result<(DecisionLog, Writer)> {
    let queue = Arc::new(Queue::new(config.when_full, config.queue_bytes));
    let writer = Writer::start(&queue, lines)?;
    let log = DecisionLog {
        allow_sample: config.allow_sample,
        format: Arc::new(Format {
            shown: Shown::new(&config.attributes),
            on_policy_error,
        }),
        queue,
    };
    Ok((log, writer))
}

/// What a thread writes its lines with.
#[derive(Default)]
struct Desk {
    line: Vec<u8>,
    dice: Dice,
}

/// The most memory that a thread keeps for its lines.
const LARGEST_KEPT_LINE_BYTES: usize = 16 << 10;

thread_local! {
    static DESK: RefCell<Desk> = RefCell::default();
}

impl DecisionLog {
    /// Whether a decision may be made now, or has to wait for the log.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.queue.has_room()
    }

    /// Returns when a decision may be made.
    pub async fn wait_for_room(&self) {
        self.queue.wait_for_room().await;
    }

    /// Tells of a decision. The id by which it is found in the log; `None`
    /// when it is not told, because it is not of the sample or there was no room.
    pub fn decided(
        &self,
        origin: &Origin<'_>,
        told: &Told<'_, impl Answers>,
    ) -> Option<DecisionId> {
        DESK.with_borrow_mut(|desk| {
            let is_told = match told.answer.decision() {
                Decision::Deny => true,
                Decision::Allow => desk.dice.falls_within(self.allow_sample),
            };
            if !is_told {
                return None;
            }
            self.add(desk, |format, line, stamp| {
                format.decided(line, stamp, origin, told);
            })
        })
    }

    /// Tells of a request that was refused, and why: `reason` is of a closed set.
    pub fn refused(&self, origin: &Origin<'_>, reason: &'static str) -> Option<DecisionId> {
        DESK.with_borrow_mut(|desk| {
            self.add(desk, |format, line, stamp| {
                format.refused(line, stamp, origin, reason);
            })
        })
    }

    /// What it did since the start.
    #[must_use]
    pub fn figures(&self) -> DecisionLogFigures {
        self.queue.figures()
    }

    fn add(
        &self,
        desk: &mut Desk,
        write: impl FnOnce(&Format, &mut Vec<u8>, &Stamp),
    ) -> Option<DecisionId> {
        let Desk { line, dice } = desk;
        let at = since_1970();
        let id = DecisionId::new(at, dice.throw());
        line.clear();
        line.shrink_to(LARGEST_KEPT_LINE_BYTES);
        write(&self.format, line, &Stamp { at, id });
        self.queue.push(line).then_some(id)
    }
}

fn since_1970() -> Duration {
    // A clock that is set before 1970 is not worth an error.
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}
