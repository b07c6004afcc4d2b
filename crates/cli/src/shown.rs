//! How an operation is shown while it is followed.

use curfew_client::OperationView;
use curfew_controller::SystemClock;
use curfew_core::operation::Kind;
use curfew_core::{Clock, Timestamp};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressStyle};

use crate::drain::progress::{Lines, live};
use crate::output::{json, json_line, line, note};
use crate::rollout::{self, Story};
use crate::timeline::Timeline;

pub enum Shown {
    /// Its end, and nothing before.
    End,
    /// Each change as a JSON object on a line of its own; the last is its end.
    Objects(Option<Box<OperationView>>),
    /// What happened to each task, and what node is waited for.
    Story(Timeline, Option<String>),
    /// The same for nodes.
    Lines(Lines),
    /// Drawn again and again on a terminal.
    Live { bar: ProgressBar, warned: usize },
    /// Lines of what happened; on a terminal how far each group is, beneath them.
    Rollout { story: Story, bar: ProgressBar },
}

/// Hidden where there is no terminal, or one that cannot draw.
fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr()).with_finish(ProgressFinish::Abandon);
    if let Ok(style) = ProgressStyle::with_template("{msg}") {
        bar.set_style(style);
    }
    bar
}

/// For these there is something to see beside their end.
pub fn is_drain(kind: Kind) -> bool {
    matches!(kind, Kind::DrainNode | Kind::DrainDatacenter)
}

pub fn by_node(kind: Kind) -> bool {
    is_drain(kind) || kind == Kind::Undrain
}

impl Shown {
    pub fn of(op: &OperationView, as_json: bool) -> Self {
        match (as_json, op.kind) {
            (true, kind) if by_node(kind) || kind == Kind::Rollout => Shown::Objects(None),
            (true, _) | (_, Kind::Submit) => Shown::End,
            (_, kind) if is_drain(kind) => Self::drain(op.requested_at),
            (_, Kind::Rollout) => Shown::Rollout { story: Story::default(), bar: bar() },
            (_, Kind::Undrain) => Shown::Lines(Lines::default()),
            _ => Shown::Story(Timeline::default(), None),
        }
    }

    /// As people see it; lines count from `zero`.
    pub fn drain(zero: Timestamp) -> Self {
        let bar = bar();
        if bar.is_hidden() {
            return Shown::Lines(Lines::since(zero));
        }
        Shown::Live { bar, warned: 0 }
    }

    /// It was looked at once more.
    pub fn look(&mut self, op: &OperationView) -> anyhow::Result<()> {
        let now = SystemClock.now();
        match self {
            Shown::End => {}
            Shown::Objects(last) => {
                if last.as_deref() != Some(op) {
                    json_line(op)?;
                    *last = Some(Box::new(op.clone()));
                }
            }
            Shown::Story(timeline, waiting_for) => {
                timeline.lines(op).iter().for_each(|l| line(l));
                let said = op.waiting_for.as_deref().filter(|w| !op.state.is_finished() && w.contains("ode "));
                if said.is_some() && waiting_for.as_deref() != said {
                    *waiting_for = said.map(str::to_owned);
                    note(&format!("           waiting for {}", said.unwrap_or_default()));
                }
            }
            Shown::Rollout { story, bar } => {
                let news = story.news(op);
                bar.suspend(|| news.iter().for_each(|l| line(l)));
                if op.state.is_finished() {
                    bar.finish_and_clear();
                } else {
                    bar.set_message(rollout::status(op, now).join("\n"));
                }
            }
            Shown::Lines(lines) => lines.news(op, now).iter().for_each(|l| line(l)),
            Shown::Live { bar, warned } => {
                for w in op.warnings.iter().skip(*warned) {
                    bar.suspend(|| note(&format!("warning: {w}")));
                }
                *warned = op.warnings.len();
                let (rows, columns) = console::Term::stderr().size();
                if op.state.is_finished() {
                    bar.finish_and_clear();
                } else {
                    // The cursor wants a line too.
                    let view = live(op, now, columns.into(), usize::from(rows).saturating_sub(1));
                    bar.set_message(view.join("\n"));
                }
            }
        }
        Ok(())
    }

    /// A line beside it.
    pub fn note(&self, text: &str) {
        match self {
            Shown::Live { bar, .. } | Shown::Rollout { bar, .. } => bar.suspend(|| note(text)),
            _ => note(text),
        }
    }

    /// The document of a program that no longer waits.
    pub fn document(&self, op: &OperationView, as_json: bool) -> anyhow::Result<()> {
        match self {
            Shown::End if as_json => json(op),
            _ => Ok(()),
        }
    }
}
