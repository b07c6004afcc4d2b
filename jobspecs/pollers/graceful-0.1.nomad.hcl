# A poller that leaves when it is asked to, version 0.1.
job "poller" {
  datacenters = ["dc1", "dc2"]
  type        = "service"

  # One at a time; healthy after a while; back to the last stable version when nothing becomes healthy in a minute.
  update {
    max_parallel      = 1
    min_healthy_time  = "5s"
    healthy_deadline  = "50s"
    progress_deadline = "1m"
    auto_revert       = true
  }

  group "pollers" {
    count = 2

    # As often as that within the interval, then not before it is over (mode = "fail": then it has failed).
    restart {
      attempts = 10
      interval = "10m"
      delay    = "10s"
      mode     = "delay"
    }

    task "poller" {
      driver = "raw_exec"

      # What its author grants it on a stop. Curfew keeps this clock, and Nomad's becomes 24h.
      kill_timeout = "5s"

      config {
        command = "/bin/sh"
        args = ["-c", <<-EOS
          trap 'echo goodbye; exit 0' TERM
          while :; do echo polling 0.1; sleep 0.2; done
        EOS
        ]
      }

      resources {
        cpu    = 20
        memory = 16
      }
    }
  }
}
