"""Atlas: an HTTP/1.1 and TCP load balancer, built from blocking sockets and threads.

Which rooms there are, which of them imports from which, and where to begin to read: `README.md` in
this folder.
"""

__version__ = "0.1.0"
