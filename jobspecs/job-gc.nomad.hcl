# The gc as a periodic job: every fifteen minutes, never two at once, its report as JSON on standard output.
#
#   curfew job run jobspecs/job-gc.nomad.hcl
#
# It needs the program curfew-gc in the PATH of the clients' agents. A pass that leaves something over ends with 3, one that met
# its cap with 4, one that could not learn everything with 1: the allocation shows as failed, and its log says why (docs/gc.md).
job "job-gc" {
  datacenters = ["*"]
  type        = "batch"

  periodic {
    crons            = ["*/15 * * * *"]
    time_zone        = "UTC"
    prohibit_overlap = true
  }

  group "gc" {
    # The next pass is the retry.
    restart {
      attempts = 0
      mode     = "fail"
    }
    reschedule {
      attempts  = 0
      unlimited = false
    }

    task "gc" {
      driver       = "raw_exec"
      kill_timeout = "30s"

      # With ACLs: NOMAD_TOKEN is this job's workload identity, which is given its policy with
      #   nomad acl policy apply -namespace default -job job-gc job-gc policy.hcl
      # An ordinary token does as well: then without this block, and NOMAD_TOKEN below (from a template, not in plain text).
      identity {
        env = true
      }

      env {
        # Where the operations are known. Without it the gc leaves every clock fifteen minutes more, and judges no orphans.
        # CURFEW_ADDR = "http://127.0.0.1:4690"

        # Without this line the task asks its own agent, over the socket that Nomad gives each task.
        # NOMAD_ADDR = "http://127.0.0.1:4646"

        # As the controllers have them, where they differ from the defaults (docs/configuration.md).
        # CURFEW_JOB_STOP_TIMEOUT = "30s"
      }

      config {
        command = "/bin/sh"
        args = ["-c", <<-EOS
          if [ -z "$NOMAD_ADDR" ] && [ -S "$NOMAD_SECRETS_DIR/api.sock" ]; then
            export NOMAD_ADDR="unix://$NOMAD_SECRETS_DIR/api.sock"
          fi
          exec curfew-gc --once --yes --json
        EOS
        ]
      }

      resources {
        cpu    = 100
        memory = 200
      }
    }
  }
}
