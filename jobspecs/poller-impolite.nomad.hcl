# A poller that ignores SIGTERM: only SIGKILL ends it, when its clock runs out.
job "poller-impolite" {
  datacenters = ["dc1"]
  type        = "service"

  group "pollers" {
    count = 1

    task "poller" {
      driver       = "raw_exec"
      kill_timeout = "10s" # Curfew's clock; Nomad's own is raised out of the way

      config {
        command = "/bin/sh"
        args    = ["-c", "trap '' TERM INT; while :; do echo polling; sleep 1; done"]
      }

      resources {
        cpu    = 20
        memory = 16
      }
    }
  }
}
