"""What `hess doctor` looks at: the machine, torch's second derivatives, and every product against dense truth."""
