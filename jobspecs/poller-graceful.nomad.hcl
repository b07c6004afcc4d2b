# A poller that leaves when it is asked to: SIGTERM ends it within a second. Version 0.1.
job "poller-graceful" {
  datacenters = ["dc1", "dc2"]
  type        = "service"

  # How a new version rolls in: one at a time, healthy after 5 s, back to the old one when it fails.
  update {
    max_parallel      = 1
    min_healthy_time  = "5s"
    healthy_deadline  = "1m"
    progress_deadline = "2m"
    auto_revert       = true
  }

  group "pollers" {
    count = 2

    task "poller" {
      driver = "raw_exec"

      # What its author grants it on a stop. Curfew keeps this clock itself and raises Nomad's.
      kill_timeout = "10s"
      kill_signal  = "SIGTERM"

      config {
        command = "/bin/sh"
        args = ["-c", <<-EOS
          trap 'echo goodbye; exit 0' TERM
          while :; do echo polling 0.1; sleep 0.5; done
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
