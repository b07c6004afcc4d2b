//! Traces: one for each operation, whoever works on it and when.
//!
//! A step runs long after the request was answered, often on another controller. So nothing is handed on: an operation's id is its trace's
//! id too, and a request that made or joined one links to it. Without a tracer (`otlp_endpoint` is empty) all of this is a look that finds none.

use curfew_core::OpId;
use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The beginning of an operation's trace, of which no span is told: steps are its children.
fn root(id: OpId) -> SpanContext {
    let id = id.uuid().into_bytes();
    let mut span = [0; 8];
    span.copy_from_slice(&id[8..]);
    let (trace, span) = (TraceId::from_bytes(id), SpanId::from_bytes(span));
    SpanContext::new(trace, span, TraceFlags::SAMPLED, true, TraceState::default())
}

/// Makes a span that has not begun yet one of the operation's.
pub fn of(id: OpId, span: Span) -> Span {
    // Without a tracer there is nothing to set.
    let _ = span.set_parent(Context::new().with_remote_span_context(root(id)));
    span
}

/// The request that is being served is about this operation.
pub fn about(id: OpId) {
    let span = Span::current();
    span.record("operation", tracing::field::display(id));
    span.add_link(root(id));
}
