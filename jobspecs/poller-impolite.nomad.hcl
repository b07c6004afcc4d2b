# A poller that ignores SIGTERM: only SIGKILL ends it. What Curfew is for.
job "poller-impolite" {
  datacenters = ["dc1", "dc2"]
  type        = "service"

  group "pollers" {
    count = 1

    task "poller" {
      driver       = "raw_exec"
      kill_timeout = "10s"
      kill_signal  = "SIGTERM"

      config {
        command = "/bin/sh"
        args = ["-c", <<-EOS
          trap 'echo no, thank you' TERM
          while :; do echo polling; sleep 0.5; done
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
