# Curfew as a Nomad job: two controllers on one PostgreSQL. One keeps the clocks, the other takes over when it is gone.
#
#   nomad acl policy apply -namespace default -job curfew curfew-job policy.hcl      # with ACLs: what its workload identity may
#   nomad var put nomad/jobs/curfew database=postgres://curfew:SECRET@127.0.0.1:5432/postgres
#   nomad job run curfew.nomad.hcl
#
# It needs the program curfew in the PATH of the clients' agents (the Debian package puts it there). A controller that Nomad runs stops
# with Nomad: what it had promised is carried out when Nomad is back. Do not submit it through Curfew, which would raise its kill_timeout.
job "curfew" {
  datacenters = ["*"]
  type        = "service"

  update {
    # One at a time: the clocks move to the other one, which takes them when the first gives them up.
    max_parallel     = 1
    health_check     = "task_states"
    min_healthy_time = "10s"
    auto_revert      = true
  }

  group "controller" {
    count = 2

    constraint {
      operator = "distinct_hosts"
      value    = "true"
    }

    restart {
      attempts = 10
      interval = "10m"
      delay    = "5s"
      mode     = "delay"
    }

    task "controller" {
      driver      = "raw_exec"
      kill_signal = "SIGTERM"
      # Longer than shutdown_timeout (25s) and the 3 s after it: then it ends by itself.
      kill_timeout = "30s"

      # NOMAD_TOKEN is this job's workload identity. An ordinary token does as well: from a template, not in plain text.
      identity {
        env = true
      }

      env {
        # 4690 for the first, 4691 for the second. Who listens off loopback must ask who calls, see docs/configuration.md.
        CURFEW_LISTEN     = "127.0.0.1:469${NOMAD_ALLOC_INDEX}"
        CURFEW_LOG_FORMAT = "json"

        # Without this line the task asks its own agent, over the socket that Nomad gives each task.
        # NOMAD_ADDR = "http://127.0.0.1:4646"
      }

      template {
        data        = "CURFEW_DATABASE={{ with nomadVar \"nomad/jobs/curfew\" }}{{ .database }}{{ end }}\n"
        destination = "secrets/database.env"
        env         = true
      }

      config {
        command = "/bin/sh"
        args = ["-c", <<-EOS
          if [ -z "$NOMAD_ADDR" ] && [ -S "$NOMAD_SECRETS_DIR/api.sock" ]; then
            export NOMAD_ADDR="unix://$NOMAD_SECRETS_DIR/api.sock"
          fi
          # The namespace of this job is not that of the jobs it looks after.
          unset NOMAD_NAMESPACE
          exec curfew serve
        EOS
        ]
      }

      resources {
        cpu    = 200
        memory = 256
      }
    }
  }
}
