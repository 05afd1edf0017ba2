"""Process groups named by their job, collectives, the shares of a ring. Needs torch alone."""
