"""Methods that match the class scores of student and teacher, and the arms without a teacher."""
