"""Two reports side by side: may they be compared, and did a figure change?"""
