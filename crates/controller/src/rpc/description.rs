//! The RPC described: OpenAPI 3.1, made from the routes and types themselves.

use std::collections::BTreeMap;

use curfew_core::api::Problem;
use utoipa::openapi::path::{Operation, Parameter, ParameterIn, PathItem};
use utoipa::openapi::schema::{AdditionalProperties, Object, Schema, Type};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    Components, Content, Header, Info, License, OpenApi, Ref, RefOr, Required, Response, ResponseBuilder, Tag,
};
use utoipa::{IntoParams, PartialSchema, ToSchema};

use super::access::{self, Need};
use super::{probes, routes};

/// In the head of every request that makes an operation.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "for the description")]
pub struct Key {
    /// 1 to 255 printable ASCII characters. The same key with the same body gives the same operation and does nothing again.
    #[param(rename = "Idempotency-Key", required = false, min_length = 1, max_length = 255, pattern = "^[!-~]+$")]
    idempotency_key: Option<String>,
}

const TAGS: [(&str, &str); 6] = [
    ("jobs", "Submit, plan, stop and look at jobs."),
    ("nodes", "Empty nodes and datacenters, and look at nodes."),
    ("operations", "What was asked for, what came of it, and stepping in."),
    ("kinds", "Whole kinds of operations."),
    ("tokens", "Who may call."),
    ("controller", "The controller itself."),
];

const BEARER: &str = "bearer";

/// What any request may be answered with, beside what its route says. The problem's `type` says more.
const PROBLEMS: [(&str, &str); 13] = [
    ("400", "The request cannot be read."),
    ("401", "Say who you are."),
    ("403", "That is not yours to do."),
    ("404", "There is no such thing."),
    ("405", "The path takes another method."),
    ("408", "The body did not arrive in time."),
    ("409", "It cannot be done now."),
    ("413", "The body is too large."),
    ("415", "The body is not said to be JSON."),
    ("422", "What it asks for is not possible."),
    ("429", "Too many requests: ask again after `Retry-After` seconds."),
    ("502", "Nomad refused the controller."),
    ("503", "Not now: ask again after `Retry-After` seconds."),
];

/// The whole of it.
pub fn description() -> OpenApi {
    let (_, front) = probes::routes().split_for_parts();
    let (_, mut api) = routes().split_for_parts();
    api.merge(front);
    api.info = Info::builder()
        .title("Curfew")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some("Stops and drains on HashiCorp Nomad that end when they were promised to."))
        .license(Some(License::builder().name("Apache-2.0").identifier(Some("Apache-2.0")).build()))
        .build();
    api.tags = Some(TAGS.map(|(name, what)| Tag::builder().name(name).description(Some(what)).build()).into());
    for (path, item) in &mut api.paths.paths {
        for (method, operation) in operations(item) {
            complete(method, path, operation);
        }
    }
    let components = api.components.get_or_insert_default();
    components.schemas.insert(Problem::name().into(), Problem::schema());
    flatten(components);
    components.responses.insert("Problem".into(), problem().into());
    let bearer = Http::builder()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("A token of Curfew's, or a workload identity of Nomad's, where the controller asks for one (`auth`)."));
    components.security_schemes.insert(BEARER.into(), SecurityScheme::Http(bearer.build()).into());
    api
}

/// As it is served, printed and kept in docs/openapi.json.
pub fn text() -> String {
    // Made of strings, numbers and maps with string keys.
    let mut text = description().to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = (&'static str, &mut Operation)> {
    [("GET", item.get.as_mut()), ("POST", item.post.as_mut())].into_iter().filter_map(|(method, op)| Some((method, op?)))
}

fn request_id() -> Header {
    let text = Object::builder().schema_type(Type::String).build();
    Header::builder().schema(Some(text)).description(Some("The request's, else a new one.")).build()
}

/// What holds for every request.
fn complete(method: &str, path: &str, operation: &mut Operation) {
    let need = access::need(method, path);
    let scope = match need {
        Need::Nothing => None,
        Need::Scope(scope) => Some(format!("Needs the scope `{scope}`.")),
        Need::OfKind => Some("Needs the scope of the operation's kind.".to_owned()),
    };
    if let Some(scope) = scope {
        operation.description = Some(operation.description.take().map_or(scope.clone(), |d| format!("{d}\n\n{scope}")));
        operation.security = Some(vec![SecurityRequirement::new::<_, _, String>(BEARER, [])]);
    }
    let id = Parameter::builder()
        .name("X-Request-Id")
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some("A word for the log, 1 to 64 of `A-Za-z0-9_.:-`; the answer has it again. Anything else is replaced."))
        .schema(Some(Object::builder().schema_type(Type::String)));
    operation.parameters.get_or_insert_default().push(id.build().into());
    let responses = &mut operation.responses.responses;
    for response in responses.values_mut() {
        if let RefOr::T(response) = response {
            response.headers.insert("X-Request-Id".into(), request_id().into());
            // What a stream is made of is said in words.
            if let Some(RefOr::T(stream)) = response.content.get_mut("text/event-stream") {
                stream.schema = None;
            }
        }
    }
    if need != Need::Nothing {
        for (status, _) in PROBLEMS {
            responses.entry(status.into()).or_insert_with(|| RefOr::Ref(Ref::from_response_name("Problem")));
        }
    }
}

fn problem() -> Response {
    let seconds = Object::builder().schema_type(Type::Integer).build();
    let retry = Header::builder().schema(Some(seconds)).description(Some("With 429 and 503: seconds."));
    let meanings: Vec<String> = PROBLEMS.iter().map(|(status, what)| format!("{status}: {what}")).collect();
    ResponseBuilder::new()
        .description(format!("RFC 9457. {}", meanings.join(" ")))
        .content("application/problem+json", Content::new(Some(Ref::from_schema_name("Problem"))))
        .header("Retry-After", retry.build())
        .header("X-Request-Id", request_id())
        .build()
}

/// A struct that another one is flattened into is said as `allOf`, and there `additionalProperties: false` of the one excludes the
/// fields of the other: such a schema is one object here.
fn flatten(components: &mut Components) {
    let known = components.schemas.clone();
    for (name, schema) in &mut components.schemas {
        if !matches!(schema, RefOr::T(Schema::AllOf(_))) {
            continue;
        }
        let Some(mut whole) = object(schema, &known) else { continue };
        // A misspelled field of a request is refused, and not taken for the default.
        if name.ends_with("Request") {
            whole.additional_properties = Some(Box::new(AdditionalProperties::FreeForm(false)));
        }
        *schema = RefOr::T(Schema::Object(whole));
    }
}

fn object(part: &RefOr<Schema>, known: &BTreeMap<String, RefOr<Schema>>) -> Option<Object> {
    match part {
        RefOr::T(Schema::Object(object)) => Some(object.clone()),
        RefOr::T(Schema::AllOf(all)) => {
            let mut whole = Object::builder().schema_type(Type::Object).description(all.description.clone()).build();
            for part in &all.items {
                let part = object(part, known)?;
                whole.properties.extend(part.properties);
                whole.required.extend(part.required);
            }
            Some(whole)
        }
        RefOr::Ref(r) => object(known.get(r.ref_location.rsplit('/').next()?)?, known),
        RefOr::T(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use serde_json::Value;

    /// Rewrites the committed copy where CURFEW_WRITE_OPENAPI is set; compares it otherwise.
    #[test]
    fn the_committed_copy_is_this_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
        if std::env::var_os("CURFEW_WRITE_OPENAPI").is_some() {
            std::fs::write(path, text()).unwrap();
        }
        let kept = std::fs::read_to_string(path).unwrap();
        assert!(kept == text(), "docs/openapi.json is not what the code says; write it anew: curfew openapi > docs/openapi.json");
    }

    #[test]
    fn every_route_is_described_and_listed() {
        let mut places = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src/rpc")];
        while let Some(place) = places.pop() {
            if place.is_dir() {
                places.extend(std::fs::read_dir(place).unwrap().map(|entry| entry.unwrap().path()));
                continue;
            }
            let text = std::fs::read_to_string(place).unwrap();
            // Split, so that this line is not one.
            assert!(
                !text.contains(concat!(".rou", "te(")) && !text.contains(concat!("rou", "te_service(")),
                "a route is added by routes!"
            );
        }
        let docs = include_str!("../../../../docs/rpc.md");
        let table: String = docs.lines().filter(|l| l.starts_with("| [`")).collect();
        for (path, item) in &mut description().paths.paths {
            assert!(table.contains(path.as_str()), "{path} is not in the table of docs/rpc.md");
            for (_, operation) in operations(item) {
                assert!(operation.summary.is_some(), "{path} says nothing about itself");
                assert!(
                    operation.tags.as_ref().is_some_and(|t| TAGS.iter().any(|(name, _)| t[0] == *name)),
                    "{path}: {:?}",
                    operation.tags
                );
            }
        }
    }

    #[test]
    fn what_is_referred_to_is_there_and_no_object_excludes_its_own_fields() {
        let all: Value = serde_json::from_str(&text()).unwrap();
        assert_eq!(all["openapi"], "3.1.0");
        let mut todo = vec![&all];
        while let Some(at) = todo.pop() {
            match at {
                Value::Object(map) => {
                    if let Some(to) = map.get("$ref").and_then(Value::as_str) {
                        assert!(all.pointer(to.trim_start_matches('#')).is_some(), "{to} is nowhere");
                    }
                    assert!(!map.contains_key("allOf"), "a flattened object that is still in pieces: {map:?}");
                    todo.extend(map.values());
                }
                Value::Array(items) => todo.extend(items),
                _ => {}
            }
        }
        let stop = &all["components"]["schemas"]["StopRequest"];
        assert_eq!(
            (&stop["additionalProperties"], &stop["properties"]["actor"]["type"][0]),
            (&Value::Bool(false), &"string".into())
        );
    }
}
