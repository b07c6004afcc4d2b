# What Curfew needs of Nomad's ACLs, and nothing more (docs/ARCHITECTURE.md, "The doctor"; `curfew doctor` checks each).
#
#   nomad acl policy apply curfew policy.hcl
#   nomad acl token create -name curfew -policy curfew -type client
#
# For Curfew as a Nomad job (curfew.nomad.hcl) there is no token to keep: its workload identity is given the policy with
#   nomad acl policy apply -namespace default -job curfew curfew-job policy.hcl

# Every namespace whose jobs Curfew is to keep the clocks of. The event stream wants read-job in all that there are.
namespace "*" {
  capabilities = [
    "submit-job",      # submit, and stop: a DELETE wants it too
    "read-job",        # jobs, allocations, evaluations, deployments, the event stream
    "list-jobs",       # the gc
    "alloc-lifecycle", # SIGKILL
    "dispatch-job",    # no call needs it today
  ]
}

# Drains, and the gc, which ends those of cancelled operations. Without drains "read" is enough.
node {
  policy = "write"
}

# max_kill_timeout of nodes whose meta does not tell it.
agent {
  policy = "read"
}
