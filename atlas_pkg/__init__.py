"""Atlas: an HTTP/1.1 and TCP load balancer, built from blocking sockets and threads.

The rooms, from the bottom up; each imports only from those above it in this list:

* `errors`, `metrics`, `logs`: the vocabulary, what fails and what is counted and written down
* `config`: the configuration file as frozen values
* `http1`: what bytes mean; no socket, thread, clock or log
* `net`: sockets and time; no HTTP
* `balancing`: choosing and reaching upstreams; no client
* `serving`: answering clients
* `control`: changing a running process
* `main`: arguments, wiring, signals, exit codes

`tests/test_architecture.py` holds the code to this.
"""

__version__ = "0.1.0"
