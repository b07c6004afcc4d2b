# For every Nomad client: a file beside the agent's other configuration, as in /etc/nomad.d/curfew.hcl. Restart the agent afterwards.
#
# A client cuts a task's kill_timeout to its own max_kill_timeout, which is 30s by default, without a word. Then Nomad's own SIGKILL
# comes before Curfew's. It must be at least Curfew's kill_timeout (24h); `curfew doctor` names the nodes where it is not.
client {
  max_kill_timeout = "25h"

  # Curfew reads it here where it may not ask the agent itself. Keep the two the same.
  meta {
    max_kill_timeout = "25h"
  }
}
