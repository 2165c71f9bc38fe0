"""The replicated metadata: everything the cluster knows about files but their contents."""
