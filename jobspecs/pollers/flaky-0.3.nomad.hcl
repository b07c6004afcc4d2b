# Version 0.3 gives up after 15 s, before it counts as healthy: no rollout should keep it.
job "poller" {
  datacenters = ["dc1", "dc2"]
  type        = "service"

  # One at a time; healthy after a while; back to the last stable version when nothing becomes healthy in a minute.
  update {
    max_parallel      = 1
    min_healthy_time  = "20s"
    healthy_deadline  = "59s"
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
          trap 'exit 0' TERM
          echo polling 0.3
          sleep 15 & wait
          echo giving up
          exit 1
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
