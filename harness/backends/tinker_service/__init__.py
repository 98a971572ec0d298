"""The backend that trains elsewhere: the Tinker service, or any server that speaks its protocol, through the SDK."""
