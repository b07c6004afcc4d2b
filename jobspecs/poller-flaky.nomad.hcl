# A poller that gives up after 15 s: version 0.3, which no rollout should keep.
job "poller-flaky" {
  datacenters = ["dc1", "dc2"]
  type        = "service"

  update {
    max_parallel      = 1
    min_healthy_time  = "20s"
    healthy_deadline  = "1m"
    progress_deadline = "2m"
    auto_revert       = true
  }

  group "pollers" {
    count = 1

    # A few quick restarts before the allocation counts as failed.
    restart {
      attempts = 3
      interval = "5m"
      delay    = "2s"
      mode     = "fail"
    }

    task "poller" {
      driver       = "raw_exec"
      kill_timeout = "10s"
      kill_signal  = "SIGTERM"

      config {
        command = "/bin/sh"
        args = ["-c", <<-EOS
          trap 'exit 0' TERM
          for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do echo polling 0.3; sleep 1; done
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
