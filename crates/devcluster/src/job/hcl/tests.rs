use serde_json::json;

use super::parse;

#[test]
fn messages_have_a_place() {
    for (source, message) in [
        ("job \"x\" {\n  foo = 1\n}\n", "input.hcl:2,3-6: Unsupported argument; An argument named \"foo\" is not expected here."),
        (
            "job \"x\" {\n  foo \"y\" {}\n}\n",
            "input.hcl:2,3-6: Unsupported block type; Blocks of type \"foo\" are not expected here.",
        ),
        (
            "job \"x\" {",
            "input.hcl:1,9-10: Unclosed configuration block; There is no closing brace for this block before the end of the file. This may be caused by incorrect brace nesting elsewhere in this file.",
        ),
        (
            "job \"x\" {\n  datacenters = [\n}\n",
            "input.hcl:3,1-2: Invalid expression; Expected the start of an expression, but found an invalid expression token.",
        ),
        (
            "job \"x\" {\n update { max_parallel = \"x\" }\n}",
            "input.hcl:2,27-28: Unsuitable value type; Unsuitable value: a number is required",
        ),
        ("foo = 1\n", "input.hcl:1,1-4: Unsupported argument; An argument named \"foo\" is not expected here."),
        (
            "job \"x\" {\n = 3\n}",
            "input.hcl:2,2-3: Argument or block definition required; An argument or block definition is required here.",
        ),
    ] {
        assert_eq!(parse(source, "").unwrap_err(), message, "{source}");
    }
}

#[test]
fn what_only_a_node_knows_stays() {
    let job = parse(
        "job \"x\" {\n group \"g\" {\n task \"t\" {\n driver = \"raw_exec\"\n config {\n command = \"${NOMAD_TASK_DIR}/x\"\n \
         args = [\"$${HOME}\", \"${attr.kernel.name}\", \"a\\nb\", 5, true]\n blk {\n a = 1\n }\n blk {\n a = 2\n }\n }\n \
         kill_timeout = \"90s\"\n template {\n data = <<EOF\nhello {{ env \"Y\" }}\nEOF\n destination = \"local/x\"\n }\n }\n }\n}\n",
        "",
    )
    .unwrap();
    let task = &job["TaskGroups"][0]["Tasks"][0];
    assert_eq!(
        task["Config"],
        json!({"command": "${NOMAD_TASK_DIR}/x", "args": ["${HOME}", "${attr.kernel.name}", "a\nb", 5, true], "blk": [{"a": 1}, {"a": 2}]})
    );
    assert_eq!(task["KillTimeout"], json!(90_000_000_000_i64));
    assert_eq!(task["Templates"][0]["EmbeddedTmpl"], json!("hello {{ env \"Y\" }}\n"));
}

#[test]
fn variables_and_locals() {
    let job = parse(
        "variable \"v\" {\n default = \"abc\"\n}\nlocals {\n z = \"q${var.v}\"\n}\njob \"x\" {\n name = upper(local.z)\n group \"g\" {\n \
         count = var.n\n }\n}\nvariable \"n\" {\n type = number\n default = 3\n}",
        "v = \"z\"",
    )
    .unwrap();
    assert_eq!(job["Name"], json!("QZ"));
    assert_eq!(job["TaskGroups"][0]["Count"], json!(3));
}
