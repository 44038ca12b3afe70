"""The user's own data, one file for each layout. Each says where records lie, and reads them in any order."""
