# Version 0.3 of a poller: it looks healthy, then exits 1 after 15 s and is restarted by its policy.
job "poller-flaky" {
  datacenters = ["dc1"]
  type        = "service"

  group "pollers" {
    count = 1

    restart {
      attempts = 10
      interval = "10m"
      delay    = "10s"
      mode     = "delay"
    }

    task "poller" {
      driver       = "raw_exec"
      kill_timeout = "10s"

      config {
        command = "/bin/sh"
        args    = ["-c", "trap 'exit 0' TERM; i=0; while [ $i -lt 15 ]; do echo polling 0.3; sleep 1; i=$((i+1)); done; exit 1"]
      }

      resources {
        cpu    = 20
        memory = 16
      }
    }
  }
}
