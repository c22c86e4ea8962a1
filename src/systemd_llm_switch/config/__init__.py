"""What the user wrote: records, the strict parser, and the file that is watched for edits.

Must not know systemd or HTTP. Start reading at `records`.
"""
