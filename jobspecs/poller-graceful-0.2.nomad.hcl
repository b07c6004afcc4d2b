# Version 0.2 of the graceful poller, for a rolling update: it hears SIGTERM, finishes its round and exits 0 well within its kill_timeout.
job "poller-graceful" {
  datacenters = ["dc1"]
  type        = "service"

  group "pollers" {
    count = 2

    task "poller" {
      driver       = "raw_exec"
      kill_timeout = "10s" # Curfew's clock; Nomad's own is raised out of the way

      config {
        command = "/bin/sh"
        args    = ["-c", "trap 'echo bye; exit 0' TERM; while :; do echo polling 0.2; sleep 1; done"]
      }

      resources {
        cpu    = 20
        memory = 16
      }
    }
  }
}
