use super::Acl;
use super::rules::Rules;

fn acl(policies: &[&str]) -> Acl {
    let rules: Vec<Rules> = policies.iter().map(|p| Rules::parse(p).unwrap()).collect();
    Acl::of(&rules)
}

#[test]
fn short_hands_stand_for_capabilities() {
    let read = acl(&["namespace \"default\" { policy = \"read\" }"]);
    assert!(read.may("default", &["list-jobs"]) && read.may("default", &["read-job"]) && read.may("default", &["parse-job"]));
    assert!(!read.may("default", &["submit-job"]) && !read.may("default", &["read-logs"]) && !read.may("games", &["list-jobs"]));
    let write = acl(&["namespace \"default\" { policy = \"write\" }"]);
    assert!(
        ["list-jobs", "submit-job", "dispatch-job", "alloc-lifecycle", "read-logs"].iter().all(|c| write.may("default", &[c]))
    );
    assert!(!write.may("default", &["alloc-node-exec"]) && !write.may("default", &["register-job"]));
    let scale = acl(&["namespace \"default\" { policy = \"scale\" }"]);
    assert!(scale.may("default", &["scale-job"]) && scale.may("default", &["read-job"]) && !scale.may("default", &["list-jobs"]));
    assert!(!read.node_read() && !read.agent_read() && !read.operator_read() && !read.management());
}

#[test]
fn policies_add_up_and_deny_ends_it() {
    let two = acl(&["namespace \"a\" { capabilities = [\"read-job\"] }", "namespace \"a\" { capabilities = [\"list-jobs\"] }"]);
    assert!(two.may("a", &["read-job"]) && two.may("a", &["list-jobs"]) && two.knows("a") && !two.knows("b"));
    for order in [
        ["namespace \"a\" { policy = \"write\" }", "namespace \"a\" { policy = \"deny\" }"],
        ["namespace \"a\" { policy = \"deny\" }", "namespace \"a\" { policy = \"write\" }"],
    ] {
        let denied = acl(&order);
        assert!(!denied.may("a", &["read-job"]) && !denied.knows("a"), "{order:?}");
    }
    assert!(!acl(&["node { policy = \"write\" }", "node { policy = \"deny\" }"]).node_read());
    let node = acl(&["node { policy = \"read\" }", "node { policy = \"write\" }\nagent { policy = \"read\" }"]);
    assert!(node.node_read() && node.node_write() && node.agent_read());
}

#[test]
fn the_nearest_pattern_decides() {
    let acl = acl(&[
        "namespace \"*\" { policy = \"read\" }\nnamespace \"prod-*\" { policy = \"deny\" }\nnamespace \"prod-eu\" { policy = \"write\" }",
    ]);
    assert!(acl.may("dev", &["read-job"]) && !acl.may("dev", &["submit-job"]));
    assert!(!acl.may("prod-us", &["read-job"]) && acl.may("prod-eu", &["submit-job"]));
    // In a request `*` is every namespace: one that allows is enough.
    assert!(acl.may("*", &["submit-job"]) && !acl.may("*", &["alloc-node-exec"]));
}

#[test]
fn variables_are_granted_by_path() {
    let acl = acl(&[
        "namespace \"default\" {\n  variables {\n    path \"app/*\" {\n      capabilities = [\"read\"]\n    }\n    path \"app/own\" {\n      capabilities = [\"write\"]\n    }\n  }\n}",
    ]);
    assert!(acl.variable("default", "app/x", "read") && acl.variable("default", "app/x", "list"));
    assert!(!acl.variable("default", "app/x", "write") && !acl.variable("default", "app/own", "read"));
    assert!(acl.variable("default", "app/own", "write") && !acl.variable("games", "app/x", "read"));
    assert!(acl.any_variable("default") && !acl.any_variable("games") && !acl.knows("default"));
}

#[test]
fn a_line_may_hold_several_attributes_and_blocks() {
    let text = "namespace \"a\" { policy = \"read\" capabilities = [\"submit-job\", \"purge-job\"] variables { path \"x\" { capabilities = [\"read\"] } } } node { policy = \"read\" } # so } \"\n// and {\n agent { policy = \"write\" }";
    let acl = acl(&[text]);
    assert!(acl.may("a", &["read-job"]) && acl.may("a", &["submit-job"]) && acl.may("a", &["purge-job"]));
    assert!(acl.variable("a", "x", "read") && acl.node_read() && acl.agent_read());
}

#[test]
fn rules_in_json_are_the_same() {
    let acl = acl(&[r#"{"namespace": {"default": {"policy": "read"}}, "node": {"policy": "write"}}"#]);
    assert!(acl.may("default", &["read-job"]) && acl.node_write());
}

/// The words were recorded of Nomad 2.0.5.
#[test]
fn what_is_wrong_is_said_as_nomad_says_it() {
    let nil = "Variables:(*acl.VariablesPolicy)(nil)}";
    for (rules, words) in [
        (
            "namespace \"default\" { policy = \"bogus\" }",
            format!(
                "Invalid namespace policy: &acl.NamespacePolicy{{Name:\"default\", Policy:\"bogus\", Capabilities:[]string(nil), {nil}"
            ),
        ),
        (
            "namespace \"default\" { capabilities = [\"bogus\"] }",
            format!(
                "Invalid namespace capability 'bogus': &acl.NamespacePolicy{{Name:\"default\", Policy:\"\", Capabilities:[]string{{\"bogus\"}}, {nil}"
            ),
        ),
        (
            "namespace \"bad name!\" { policy = \"read\" }",
            format!(
                "Invalid namespace name: &acl.NamespacePolicy{{Name:\"bad name!\", Policy:\"read\", Capabilities:[]string(nil), {nil}"
            ),
        ),
        (
            "namespace { policy=\"read\" }",
            format!(
                "Invalid namespace name: &acl.NamespacePolicy{{Name:\"\", Policy:\"read\", Capabilities:[]string(nil), {nil}"
            ),
        ),
        ("node { }", "Invalid node policy: &acl.NodePolicy{Policy:\"\"}".into()),
        ("agent { policy = \"list\" }", "Invalid agent policy: &acl.AgentPolicy{Policy:\"list\"}".into()),
        ("plugin { policy = \"foo\" }", "Invalid plugin policy: &acl.PluginPolicy{Policy:\"foo\"}".into()),
        ("operator { capabilities = [\"x\"] }", "Invalid operator capability 'x'".into()),
        ("foo = 1", "Invalid policy: foo = 1".into()),
        (
            "namespace \"default\" { policy = \"read\" }\nbar \"x\" { policy = \"read\" }",
            "Invalid or duplicate policy keys: bar, x".into(),
        ),
        ("node { policy = \"read\" }\nnode { policy=\"write\"}", "Invalid or duplicate policy keys: node".into()),
        ("namespace \"default\" { variables { } }", "Invalid variable policy: no variable paths in namespace default".into()),
        (
            "namespace \"default\" {\n variables {\n path \"/x\" { capabilities = [\"read\"] }\n }\n }",
            "Invalid variable path \"/x\" in namespace default: cannot start with a leading '/'`".into(),
        ),
        (
            "namespace \"default\" {\n variables {\n path \"x\" { capabilities = [\"foo\"] }\n }\n }",
            "Invalid variable capability 'foo' in namespace default".into(),
        ),
    ] {
        assert_eq!(Rules::parse(rules).unwrap_err(), words);
    }
    assert!(Rules::parse("namespace \"default\" {").unwrap_err().starts_with("Failed to parse ACL Policy: "));
    for good in [
        "",
        "node_pool \"x\" { policy = \"read\" }",
        "quota { policy = \"read\" }",
        "sentinel { policy = \"read\" }",
        "host_volume \"a\" { policy = \"write\" }",
    ] {
        Rules::parse(good).unwrap();
    }
}
