//! Every call this crate can make, with its path template and the ACL capability it needs.

use std::sync::atomic::{AtomicU64, Ordering};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// RFC 3986's unreserved characters stay; everything else, `/` above all, is escaped: child ids hold slashes (design fact 14).
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

pub(crate) fn escape(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

macro_rules! routes {
    ($($name:ident: $method:literal $template:literal needs $capability:literal;)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Route { $($name),* }

        impl Route {
            pub(crate) const ALL: &'static [Route] = &[$(Route::$name),*];

            /// `METHOD template`, as the counters name it.
            pub(crate) const fn label(self) -> &'static str {
                match self { $(Route::$name => concat!($method, " ", $template)),* }
            }
            pub(crate) const fn method(self) -> http::Method {
                match self { $(Route::$name => method($method)),* }
            }
            pub(crate) const fn template(self) -> &'static str {
                match self { $(Route::$name => $template),* }
            }
            /// What a token must be allowed to do for this call (design fact 15).
            pub(crate) const fn capability(self) -> &'static str {
                match self { $(Route::$name => $capability),* }
            }
        }
    };
}

const fn method(name: &str) -> http::Method {
    match name.as_bytes() {
        b"GET" => http::Method::GET,
        b"PUT" => http::Method::PUT,
        b"POST" => http::Method::POST,
        _ => http::Method::DELETE,
    }
}

routes! {
    ParseJob: "POST" "/v1/jobs/parse" needs "namespace capability parse-job or submit-job";
    RegisterJob: "PUT" "/v1/jobs" needs "namespace capability submit-job";
    PlanJob: "PUT" "/v1/job/:job/plan" needs "namespace capability submit-job";
    ValidateJob: "PUT" "/v1/validate/job" needs "namespace capability read-job";
    Job: "GET" "/v1/job/:job" needs "namespace capability read-job";
    JobVersions: "GET" "/v1/job/:job/versions" needs "namespace capability read-job";
    DeleteJob: "DELETE" "/v1/job/:job" needs "namespace capability submit-job";
    JobAllocations: "GET" "/v1/job/:job/allocations" needs "namespace capability read-job";
    JobDeployments: "GET" "/v1/job/:job/deployments" needs "namespace capability read-job";
    JobEvaluations: "GET" "/v1/job/:job/evaluations" needs "namespace capability read-job";
    Jobs: "GET" "/v1/jobs" needs "namespace capability list-jobs";
    DispatchJob: "PUT" "/v1/job/:job/dispatch" needs "namespace capability dispatch-job";
    Allocations: "GET" "/v1/allocations" needs "namespace capability read-job";
    Allocation: "GET" "/v1/allocation/:alloc" needs "namespace capability read-job";
    Signal: "PUT" "/v1/client/allocation/:alloc/signal" needs "namespace capability alloc-lifecycle";
    Evaluation: "GET" "/v1/evaluation/:eval" needs "namespace capability read-job";
    Deployments: "GET" "/v1/deployments" needs "namespace capability read-job";
    Deployment: "GET" "/v1/deployment/:deployment" needs "namespace capability read-job";
    FailDeployment: "PUT" "/v1/deployment/fail/:deployment" needs "namespace capability submit-job";
    PromoteDeployment: "PUT" "/v1/deployment/promote/:deployment" needs "namespace capability submit-job";
    Nodes: "GET" "/v1/nodes" needs "node policy read";
    Node: "GET" "/v1/node/:node" needs "node policy read";
    NodeAllocations: "GET" "/v1/node/:node/allocations" needs "node policy read, and namespace capability read-job in every namespace";
    NodeDrain: "PUT" "/v1/node/:node/drain" needs "node policy write";
    NodeEligibility: "PUT" "/v1/node/:node/eligibility" needs "node policy write";
    ClientStats: "GET" "/v1/client/stats" needs "node policy read";
    AgentSelf: "GET" "/v1/agent/self" needs "agent policy read";
    Members: "GET" "/v1/agent/members" needs "node policy read";
    WorkloadKeys: "GET" "/.well-known/jwks.json" needs "no capability";
    Leader: "GET" "/v1/status/leader" needs "no capability";
    Events: "GET" "/v1/event/stream" needs "namespace capability read-job in every namespace, and node policy read";
}

impl Route {
    pub(crate) fn changes(self) -> bool {
        matches!(
            self,
            Self::RegisterJob
                | Self::DeleteJob
                | Self::DispatchJob
                | Self::Signal
                | Self::FailDeployment
                | Self::PromoteDeployment
                | Self::NodeDrain
                | Self::NodeEligibility
        )
    }

    /// The template with its `:names` replaced, in order, each escaped. `Err` names what is wrong with a segment.
    pub(crate) fn path(self, segments: &[&str]) -> Result<String, String> {
        let mut given = segments.iter();
        let mut path = String::new();
        for part in self.template().split('/').skip(1) {
            path.push('/');
            match part.strip_prefix(':') {
                None => path.push_str(part),
                Some(name) => match given.next().copied().unwrap_or("") {
                    "" => return Err(format!("the {name} id is empty")),
                    // URL parsers fold these away even when escaped, and the call would reach another resource.
                    dots @ ("." | "..") => return Err(format!("\"{dots}\" cannot be a {name} id in a URL")),
                    segment => path.push_str(&escape(segment)),
                },
            }
        }
        Ok(path)
    }
}

/// How often each route was asked, retries and failures included.
pub(crate) struct Counters([AtomicU64; Route::ALL.len()]);

impl Default for Counters {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Counters {
    pub(crate) fn count(&self, route: Route) {
        self.0[route as usize].fetch_add(1, Ordering::Relaxed);
    }
    pub(crate) fn snapshot(&self) -> Vec<(&'static str, u64)> {
        Route::ALL.iter().map(|r| (r.label(), self.0[*r as usize].load(Ordering::Relaxed))).filter(|(_, n)| *n > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_escaped_and_dots_are_refused() {
        assert_eq!(Route::JobAllocations.path(&["a/dispatch-1"]).unwrap(), "/v1/job/a%2Fdispatch-1/allocations");
        assert_eq!(Route::Job.path(&["é.x?y#z%"]).unwrap(), "/v1/job/%C3%A9.x%3Fy%23z%25");
        assert!(Route::Job.path(&[".."]).is_err());
        assert!(Route::Job.path(&[""]).is_err());
    }
}
