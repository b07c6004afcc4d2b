//! Nodes that a drain of Curfew's left behind.

use crate::operation::State;

/// What is to be said of a node that takes no allocations because of a Curfew drain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeLeft {
    /// Its operation is under way, or it takes allocations.
    Fine,
    /// Left so: on purpose, or nobody can tell.
    Report(&'static str),
    /// Its drain was cancelled: it should be as it was before.
    MakeEligible(&'static str),
}

/// `was_eligible`: it took allocations before the drain. `operation` is the state of the drain's operation: `None` when it is not known, or nobody can be asked.
pub fn node_left(eligible: bool, draining: bool, was_eligible: bool, operation: Option<State>) -> NodeLeft {
    if eligible && !draining {
        return NodeLeft::Fine;
    }
    match operation {
        Some(state) if !state.is_finished() => NodeLeft::Fine,
        Some(State::Cancelled) if draining => NodeLeft::MakeEligible("it still drains, by an operation that was cancelled"),
        Some(State::Cancelled) if !was_eligible => NodeLeft::Fine,
        Some(State::Cancelled) => NodeLeft::MakeEligible("it is still ineligible, by an operation that was cancelled"),
        Some(State::Failed) => NodeLeft::Report("the drain that made it ineligible failed"),
        Some(_) => NodeLeft::Report("its drain is done; it stays ineligible until somebody undrains it"),
        None => NodeLeft::Report("a drain of Curfew's made it ineligible, and that operation is not known"),
    }
}
